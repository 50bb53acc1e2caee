"""The same decisions behind somebody else's data plane: a gateway that asks by Envoy's ext_proc."""
