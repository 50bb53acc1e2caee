"""What can be wrong with a file: bytes, values, shapes."""

import copy
import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml

ODD: list[Any] = [
    *(None, True, -1, 0, 1, 3, 2**31, 2**40, 2**63, 10**12, 10**30, 10**400),
    *(0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "8",
        "nan",
        "x" * 3000,
        "\x1b[31m\x07",
        "[/b] [link]",
        "a\nb",
        "\ud800",
        "../../etc/passwd",
    ),
    *("2024-13-45", "1:2:3", "!!python/object:os.system", "*a", "h100", "deepseek-v3"),
    *([], {}, [[]], [None], [1, [2, [3]]], {"": ""}, {"a": {"a": {"a": 1}}}, [0] * 5000),
]


def of_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flipped, cut, doubled or strange bytes."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(5):
            case 0 if at < len(found):
                found[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(found):
                found[at] = chance.choice(b"\x00\xff\x1b[]{}:-,0919")
            case 2:
                del found[at:]
            case 3:
                del found[at : at + chance.randrange(40)]
            case _:
                found[at:at] = found[max(at - chance.randrange(60), 0) : at]
    return bytes(found)


def of_value(value: Any, chance: random.Random) -> Any:
    """The same lists and objects with something odd in them."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        holder, key = _somewhere(value, chance)
        if holder is None:
            return _odd(chance)
        match chance.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(("", "extra", "a\nb\x1b", "layers"))] = _odd(chance)
            case 1:
                holder.insert(key, _odd(chance))
            case 2 if isinstance(holder, list):
                chance.shuffle(holder)
            case 3:
                holder[key] = _odd(chance)
            case _:
                holder[key] = _like(holder[key], chance)
    return value


def _like(value: Any, chance: random.Random) -> Any:
    """Something that might stand in its place."""
    kinds: list[Any] = [[value], str(value), chance.choice(ODD[:18])]
    if isinstance(value, int | float) and abs(value) < 1e15:
        kinds += [value - 1, value + 1, value + 8]
        kinds.append(value * chance.choice((-1, 0, 1.5, 2, 3, 10, 1000, 1e9, 1e-9)))
    if isinstance(value, list):
        kinds += [value[: chance.randrange(3)] * chance.choice((1, 2, 100))] * 3
    return chance.choice(kinds)


def of_json(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.05:
        deep = chance.choice((50, 900, 100_000))
        return b"[" * deep + data + b"]" * deep
    value = json.loads(data)
    if isinstance(value, dict) and chance.random() < 0.8:
        value.pop("digest", None)  # or it tells of every change
    text = json.dumps(of_value(value, chance))
    if chance.random() < 0.05:
        text = text.replace("{", '{"format": 1, ', 1)
    return text.encode()


def of_yaml(data: bytes, chance: random.Random) -> bytes:
    value = of_value(yaml.safe_load(data), chance)
    match chance.randrange(12):
        case 0:
            return b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b, *b]\n" + data
        case 1:
            steps = "".join(f"k{n}: &k{n} [*k{n - 1}, *k{n - 1}]\n" for n in range(1, 40))
            return f"k0: &k0 [x]\n{steps}".encode() + data
        case 2:
            tag = chance.choice(("!!binary", "!!set", "!!timestamp", "!!int", "!odd"))
            return data.replace(b": ", f": {tag} ".encode(), 1)
        case 3:
            return data + data
        case 4:
            odd = chance.choice(
                ("? [a]\n: b\n", "<<: [1]\n", "1: 2\n", "~: x\n", "=: 1\n", "a: *b\n")
            )
            return data + b"\n" + odd.encode()
        case 5:
            return data.replace(b": ", b": " + chance.choice((b"{" * 500, b"- " * 9999)), 1)
        case _:
            return yaml.safe_dump(_without_surrogates(value), allow_unicode=True).encode()


def of_npz(data: bytes, chance: random.Random) -> bytes:
    with np.load(io.BytesIO(data)) as archive:
        arrays = dict(archive)
    name = chance.choice(sorted(arrays))
    if chance.random() < 0.15:
        return _forged(arrays, name, chance)
    if name == "meta" and chance.random() < 0.8:
        meta = of_value(json.loads(str(arrays["meta"])), chance)
        arrays["meta"] = np.array(json.dumps(meta))
    else:
        match chance.randrange(8):
            case 0:
                del arrays[name]
            case 1:
                arrays[chance.choice(("load", "expert_ids", "gates", "token_ids"))] = arrays[name]
            case _:
                arrays[name] = _of_array(arrays[name], chance)
    packed = io.BytesIO()
    save: Callable[..., None] = chance.choice((np.savez, np.savez_compressed))
    save(packed, **arrays)
    return packed.getvalue()


def _of_array(array: Any, chance: random.Random) -> Any:
    """Another type, another shape, or values that cannot be."""
    if array.dtype.kind == "U" or not array.size:
        return np.array(chance.choice(("{}", "[]", "1", "", "x" * 10_000)))
    match chance.randrange(10):
        case 0:
            kinds = ("u1", "i1", "u2", "i8", "u8", ">i4", "f2", "f8", "?", "c16", "U5", "S3")
            return array.astype(chance.choice(kinds))
        case 1:
            shapes = ((-1,), (*array.shape, 1), (1, *array.shape), array.shape[::-1], (-1, 1, 1))
            return array.reshape(chance.choice(shapes))
        case 2:
            return array[: chance.randrange(len(array))] if array.ndim else array
        case 3:
            return np.concatenate([array] * chance.choice((2, 50))) if array.ndim else array
        case 4:
            return np.asfortranarray(array)
        case 5:
            return np.zeros(
                chance.choice(((0,), (), (0, 4), (2**24,), (3, 2**20), (1, 1, 1))), "u1"
            )
        case 6 if array.ndim:
            return array[np.array(chance.choices(range(len(array)), k=len(array)))]
        case 7:
            return array * chance.choice((0, 2, 100))
        case 8:
            return array.astype("i8") + chance.choice((-1, 1))
        case _:
            found = array.astype(chance.choice(("i8", "u8", "f8")))
            odd = (-1, 0, 1, 200, 2**15, 2**31, 2**40, 2**62, float("nan"), float("inf"), 1e300)
            with np.errstate(all="ignore"):
                found.flat[chance.randrange(found.size)] = np.float64(chance.choice(odd)).astype(
                    found.dtype
                )
            return found


def _forged(arrays: dict[str, Any], name: str, chance: random.Random) -> bytes:
    """A header that promises more than there is, is no header, or deflates a lot from little."""
    huge = ((2**62,), (2**31, 2**31), (10**9,), (2**28, 1, 1), (-1, 2), (0, 2**60), ("x",))
    shape, descr = (
        chance.choice(huge),
        chance.choice(("|u1", "<i8", "|O", "<U99999999", "nonsense")),
    )
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    text = chance.choice(
        (text, text, "(" * 5000, "{'descr': '", "1L", "-" * 9000, "'''", "\n  \n x")
    )
    member = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()
    packing = chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", packing) as archive:
        for other, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            zeros = bytes(chance.choice((0, 0, 2**22)))
            archive.writestr(
                f"{other}.npy", member + zeros if other == name else content.getvalue()
            )
    return packed.getvalue()


def _somewhere(value: Any, chance: random.Random) -> tuple[Any, Any]:
    """A list or an object inside ``value``, and where in it; (None, None) if it has none."""
    holder, key = None, None
    while isinstance(value, dict | list) and value and (holder is None or chance.random() < 0.7):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        holder, key = value, chance.choice(keys)
        value = value[key]
    return holder, key


def _odd(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(ODD))


def _without_surrogates(value: Any) -> Any:
    """YAML is UTF-8, which has none."""
    return json.loads(json.dumps(value).replace("\\ud800", "?"))
