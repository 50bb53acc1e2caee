#!/usr/bin/env bash
# deploy/kind.sh [NAME]: a cluster on this machine with placer in it, by kind (https://kind.sigs.k8s.io).
# The script as a whole is untested: where placer is developed there is no kind. Its images must be there:
# deploy/README.md says how they are built.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:-placer}
namespace=moe
version=$(sed -n 's/^appVersion: //p' helm/placer/Chart.yaml)

for tool in kind kubectl helm openssl; do
    command -v "$tool" > /dev/null || { echo "kind.sh: $tool is not on PATH: install it" >&2; exit 2; }
done

if ! kind get clusters | grep -qx "$name"; then
    kind create cluster --name "$name" --wait 120s
fi
kubectl config use-context "kind-$name"
kind load docker-image --name "$name" "placer:$version" "placer-agent:$version"

kubectl create namespace "$namespace" --dry-run=client -o yaml | kubectl apply -f -
# A certificate of its own, for a month: cert-manager would be one more thing to install.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=placer-ca \
    -keyout "$folder/ca.key" -out "$folder/ca.crt" 2> /dev/null
openssl req -newkey rsa:2048 -nodes -subj /CN=placer-controller \
    -keyout "$folder/tls.key" -out "$folder/tls.csr" 2> /dev/null
openssl x509 -req -days 30 -in "$folder/tls.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial \
    -out "$folder/tls.crt" -extfile <(
        echo "subjectAltName=DNS:placer-controller,DNS:placer-controller.$namespace,DNS:placer-controller.$namespace.svc"
    ) 2> /dev/null
kubectl create secret generic placer-tls --namespace "$namespace" --dry-run=client -o yaml \
    --from-file="$folder/ca.crt" --from-file="$folder/tls.crt" --from-file="$folder/tls.key" | kubectl apply -f -

helm upgrade --install placer-crds helm/placer-crds --namespace default
helm upgrade --install placer helm/placer --namespace "$namespace" --set tls.secretName=placer-tls --wait --timeout 10m
helm test placer --namespace "$namespace"
