"Ways in which a file is damaged: bytes, JSON, tables, HDF5 contents, and what lies in its place"

import json
import os
import shutil
import socket
import struct
from pathlib import Path

import numpy as np

# --- bytes -----------------------------------------------------------------------------------------------


def position(rng, n):
    "A place in `n` bytes; a third of them near the ends, where formats keep what they say of themselves"
    where = rng.random()
    if where < 0.2:
        return int(rng.integers(min(n, 2048)))
    if where < 0.35:
        return int(n - 1 - rng.integers(min(n, 2048)))
    return int(rng.integers(n))


def bit_flip(b, rng):
    "One bit"
    i, bit = position(rng, len(b)), int(rng.integers(8))
    b[i] ^= 1 << bit
    return f'bit {bit} of byte {i}'


def other_bytes(b, rng):
    "One to eight bytes, anywhere"
    at = sorted({position(rng, len(b)) for _ in range(rng.integers(1, 9))})
    for i in at:
        b[i] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
    return f'bytes {at}'


def byte_run(b, rng):
    "Zeros, ones or noise over a piece"
    i, n = position(rng, len(b)), int(rng.choice([2, 4, 8, 16, 64, 512, 4096]))
    n = min(n, len(b) - i)
    fill = rng.integers(3)
    b[i : i + n] = rng.bytes(n) if fill == 2 else bytes([255 * int(fill)]) * n
    return f'{n} bytes at {i}: {("zeros", "ones", "noise")[fill]}'


def truncation(b, rng):
    "The end is missing"
    n = position(rng, len(b))
    del b[n:]
    return f'cut to {n} bytes'


def insertion(b, rng):
    "Bytes too many"
    i, n = position(rng, len(b)), int(rng.choice([1, 2, 8, 100, 4096]))
    b[i:i] = rng.bytes(n)
    return f'{n} bytes put in at {i}'


def deletion(b, rng):
    "Bytes missing"
    i, n = position(rng, len(b)), int(rng.choice([1, 2, 8, 100, 4096]))
    del b[i : i + n]
    return f'{n} bytes taken out at {i}'


def swapped_blocks(b, rng):
    "Two blocks change places"
    n = int(rng.choice([8, 64, 512, 4096]))
    n = min(n, max(len(b) // 3, 1))
    i, j = sorted(int(rng.integers(max(len(b) - n, 1))) for _ in range(2))
    if j < i + n:
        return bit_flip(b, rng)
    b[i : i + n], b[j : j + n] = b[j : j + n], b[i : i + n]
    return f'{n} bytes at {i} and at {j} swapped'


def appended(b, rng):
    "Bytes after the end"
    n = int(rng.choice([1, 8, 512, 4096]))
    b += rng.bytes(n) if rng.random() < 0.7 else b[:n]
    return f'{n} bytes added'


BYTES = [
    (bit_flip, 30),
    (other_bytes, 12),
    (byte_run, 14),
    (truncation, 12),
    (insertion, 8),
    (deletion, 8),
    (swapped_blocks, 8),
    (appended, 3),
]


def damage_bytes(path, rng, ways=BYTES):
    b = bytearray(path.read_bytes())
    if not b:
        b += b'\0'
    way = pick(rng, ways)
    said = way(b, rng)
    path.write_bytes(b)
    return way.__name__, said


def pick(rng, weighted):
    "One of (thing, weight)"
    weights = np.array([w for _, w in weighted], float)
    return weighted[rng.choice(len(weighted), p=weights / weights.sum())][0]


# --- JSON ------------------------------------------------------------------------------------------------

RAW = '\x00raw:'  # a value to be put in as it is, which JSON itself could not hold
ODD = [
    None, True, False, 0, 1, -1, 0.5, 2**31, 2**53 + 1, 2**63, -(2**63), 10**30, 1e308, -1e308, '', 'x',
    'nan', 'inf', '1', [], {}, [[]], [None], {'': None}, '\x1b[31mred\x1b[0m', '\x00', '\u202e',
    '../../etc/passwd', '/dev/zero', 'a' * 100_000, [0] * 5000, RAW + 'NaN', RAW + '-Infinity', RAW +
    '1e999', RAW + '[' * 3000 + ']' * 3000, RAW + '9' * 5000,
]  # fmt: skip


def spots(o, path=()):
    "All places in a JSON value, as (container, key)"
    items = o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, list) else ()
    for k, v in items:
        yield o, k, (*path, k)
        yield from spots(v, (*path, k))


def near(v, rng):
    "Another value of the same kind"
    if isinstance(v, bool):
        return not v
    if isinstance(v, int):
        return int(rng.choice([v + 1, v - 1, -v, 10 * v, v + 1000, 10**6, 10**9]))
    if isinstance(v, float):
        return float(rng.choice([v * 1.1, -v, v * 1e6, 0.0, v + 1e-6]))
    if isinstance(v, str) and v:
        i = int(rng.integers(len(v)))
        return v[:i] + chr(33 + int(rng.integers(90))) + v[i + 1 :]
    if isinstance(v, list) and v:
        return [v[:-1], v + v[-1:], v[::-1], v * 100][rng.integers(4)]
    return ODD[rng.integers(len(ODD))]


def mutate_json(o, rng):
    "Change a JSON value at one place; what was done"
    places = list(spots(o))
    if not places:
        return 'nothing to change'
    where, k, path = places[rng.integers(len(places))]
    name = '/'.join(map(str, path))
    way = rng.integers(5)
    if way == 0:
        del where[k]
        return f'{name} removed'
    if way == 1 and isinstance(where, dict):
        other = ['\x1b[2J', k + ' ', k.upper(), '', 'x' * 2000][rng.integers(5)]
        where[other] = where.pop(k)
        return f'{name} renamed to {other[:20]!r}'
    new = near(where[k], rng) if way < 4 else ODD[rng.integers(len(ODD))]
    where[k] = new
    return f'{name} = {str(new)[:60]!r}'


def json_text(o):
    "As text, with raw values put in"
    text = json.dumps(o)
    for raw in ODD:
        if isinstance(raw, str) and raw.startswith(RAW):
            text = text.replace(json.dumps(raw), raw[len(RAW) :])
    return text


def raw_json(path, rng):
    "What no parser of JSON should be given"
    b = path.read_bytes()
    what, data = [
        ('with a BOM', b'\xef\xbb\xbf' + b),
        ('in UTF-16', b.decode('utf8', 'replace').encode('utf-16')),
        ('not UTF-8', b.replace(b'"', b'"\xff\xfe', 1)),
        ('a list', b'[' + b + b']'),
        ('a number', b'1e400'),
        ('null', b'null'),
        ('nested 100,000 deep', b'[' * 100_000),
        ('twice', b + b),
        ('17 MB of spaces', b + b' ' * (17 << 20)),
        ('with NUL bytes', b + bytes(100)),
        ('with a key twice', b.replace(b'{', b'{"format": "x",', 1)),
        ('a Python literal', str(b)[2:-1].encode()),
    ][rng.integers(12)]
    path.write_bytes(data)
    return 'raw_json', what


def damage_json(path, rng):
    if rng.random() < 0.15:
        return raw_json(path, rng)
    lines = path.suffix == '.jsonl'
    text = path.read_text()
    o = [json.loads(l) for l in text.splitlines() if l] if lines else json.loads(text)
    said = '; '.join(mutate_json(o, rng) for _ in range(rng.integers(1, 3)))
    path.write_text('\n'.join(map(json_text, o)) + '\n' if lines else json_text(o))
    return 'json', said


def damage_header(path, rng):
    "The JSON in the header of a safetensors file, its length corrected"
    b = path.read_bytes()
    (n,) = struct.unpack('<Q', b[:8])
    h = json.loads(b[8 : 8 + n])
    said = mutate_json(h, rng)
    text = json_text(h).encode()
    text += b' ' * (-len(text) % 8)
    size = len(text) if rng.random() < 0.9 else int(rng.choice([0, 2**40, 2**63, len(text) - 1]))
    path.write_bytes(struct.pack('<Q', size) + text + b[8 + n :])
    return 'safetensors header', said


def damage_state(path, rng):
    "The JSON text of a training's state, which the header of a checkpoint holds"
    b = path.read_bytes()
    (n,) = struct.unpack('<Q', b[:8])
    h = json.loads(b[8 : 8 + n])
    meta = h.get('__metadata__', {})
    key = next((k for k, v in meta.items() if v.startswith(('{', '['))), None)
    if key is None:
        return damage_header(path, rng)
    state = json.loads(meta[key])
    said = mutate_json(state, rng)
    meta[key] = json_text(state)
    text = json.dumps(h).encode()
    text += b' ' * (-len(text) % 8)
    path.write_bytes(struct.pack('<Q', len(text)) + text + b[8 + n :])
    return 'json in a header', said


# --- tables ----------------------------------------------------------------------------------------------


def damage_csv(path, rng):
    rows = [l.split(',') for l in path.read_text().splitlines()]
    r, c = int(rng.integers(len(rows))), int(rng.integers(len(rows[0])))
    way = int(rng.integers(6))
    if way == 0:
        rows = [row[:c] + row[c + 1 :] for row in rows]
        said = f'column {c} removed'
    elif way == 1:
        del rows[r]
        said = f'row {r} removed'
    elif way == 2:
        rows = rows + rows[r : r + 1] * int(rng.choice([1, 1000]))
        said = f'row {r} again'
    else:
        odd = ['', 'x', 'nan', 'inf', '1e999', '"', '\x1b[2J', '-1', '9' * 400, '\x00', 'a' * 10**6, '1,2,3']
        rows[r][c] = odd[rng.integers(len(odd))]
        said = f'row {r}, column {c} = {rows[r][c][:20]!r}'
    path.write_text('\n'.join(map(','.join, rows)) + '\n')
    return 'csv', said


# --- HDF5 ------------------------------------------------------------------------------------------------


def damage_hdf5(path, rng):
    "Change what an HDF5 file holds, by way of HDF5"
    import h5py

    with h5py.File(path, 'r+') as f:
        names = []
        f.visit(names.append)
        name = names[rng.integers(len(names))]
        o = f[name]
        attrs = [(p, k) for p in ('/', *names) for k in f[p].attrs]
        way = int(rng.integers(6))
        if way == 0 and attrs:
            p, k = attrs[rng.integers(len(attrs))]
            v = [None, 0, 1, -1, 25, 125, 2**40, 1.5, 'x', np.bytes_(b'array'), np.bytes_(b'\x1b[2J'), [1, 2]]
            v = v[rng.integers(len(v))]
            if v is None:
                del f[p].attrs[k]
            else:
                f[p].attrs[k] = v
            return 'hdf5', f'attribute {k} of {p} = {v!r}'
        if way == 1:
            del f[name]
            return 'hdf5', f'{name} removed'
        if way == 2:
            f.move(name, name + 'x')
            return 'hdf5', f'{name} renamed'
        if not isinstance(o, h5py.Dataset) or not o.size:
            f.attrs['more'] = 1
            return 'hdf5', 'an attribute more'
        a = o[()]
        if way == 3:
            del f[name]
            t = rng.choice(['f2', 'f4', 'f8', 'i8', 'u1', '>f4', 'i2'])
            f[name] = a.astype(t)
            return 'hdf5', f'{name} as {t}'
        if way == 4:
            del f[name]
            f[name] = a[:-1] if rng.random() < 0.5 else np.concatenate([a, a[-1:]])
            return 'hdf5', f'{name} of another length'
        at = tuple(int(rng.integers(s)) for s in a.shape)
        values = [0, 1, -1, 0.5, 1e30] + [np.nan, np.inf] * (a.dtype.kind == 'f')
        v = values[rng.integers(len(values))]
        with np.errstate(all='ignore'):
            a[at] = np.asarray(v).astype(a.dtype)
        o[...] = a
        return 'hdf5', f'{name}{list(at)} = {v}'


# --- what lies there instead -----------------------------------------------------------------------------


def _gone(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _device(path, rng):
    major_minor = {'null': (1, 3), 'zero': (1, 5), 'urandom': (1, 9)}
    name = list(major_minor)[rng.integers(3)]
    if os.getuid() == 0 and rng.random() < 0.5:
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(*major_minor[name]))
            return f'the device {name}'
        except OSError:
            pass
    path.symlink_to(f'/dev/{name}')
    return f'a link to /dev/{name}'


def _fill_folder(path, rng):
    path.mkdir()
    if rng.random() < 0.5:
        (path / 'inside.txt').write_text('a folder')
    return 'a folder'


def _fifo(path, rng):
    os.mkfifo(path)
    return 'a FIFO'


def _socket(path, rng):
    s = socket.socket(socket.AF_UNIX)
    where = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may have 107 bytes
    try:
        s.bind(path.name)
    finally:
        os.chdir(where)
        s.close()
    return 'a socket'


def _link(path, rng):
    other = path.parent / 'precious.txt'
    to = [other, path, path.parent / 'nowhere', Path('/etc/passwd'), path.parent][rng.integers(5)]
    path.symlink_to(to)
    return f'a link to {to.name or to}'


def _nothing(path, rng):
    return 'nothing'


def _empty(path, rng):
    path.touch()
    return 'an empty file'


KINDS = dict(
    text=b'These are not the jets you are looking for.\n' * 20,
    html=b'<!DOCTYPE html><html><head><title>403</title></head><body>Forbidden</body></html>',
    lfs=b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64 + b'\nsize 123456\n',
    png=b'\x89PNG\r\n\x1a\n' + bytes(200),
    zip=b'PK\x03\x04' + bytes(200),
    gzip=b'\x1f\x8b\x08\x00' + bytes(100),
    zstd=b'\x28\xb5\x2f\xfd' + bytes(100),
    npy=b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }".ljust(128)
    + bytes(12),
    pickle=b'\x80\x04cos\nsystem\n(S"touch /tmp/jetbook-was-here"\ntR.',
    csv=b'y,pt,m0\n0,1,2\n1,2,3\n',
    json=b'{"format": "jetbook-run", "version": 1}',
    hdf5=b'\x89HDF\r\n\x1a\n' + bytes(500),
    parquet=b'PAR1' + bytes(300) + b'\x08\x00\x00\x00PAR1',
    safetensors=struct.pack('<Q', 8) + b'{"a":[]}',
    jetz=b'jetz\r\n\x1a\x01' + bytes(100),
    nul=bytes(4096),
)


def _wrong_kind(path, rng, others=()):
    names = [*KINDS, *others]
    k = names[rng.integers(len(names))]
    if isinstance(k, Path):
        shutil.copy(k, path)
        return f'a sound file of another kind: {k.name}'
    path.write_bytes(KINDS[k])
    return f'a file of another kind: {k}'


INSTEAD = [
    (_fifo, 2), (_device, 2), (_fill_folder, 2), (_link, 4),
    (_socket, 1), (_nothing, 2), (_empty, 2), (_wrong_kind, 5),
]  # fmt: skip


def damage_instead(path, rng, others=()):
    "Put something else in the place of a file"
    way = pick(rng, INSTEAD)
    _gone(path)
    said = _wrong_kind(path, rng, others) if way is _wrong_kind else way(path, rng)
    return way.__name__.strip('_'), said


# --- which way -------------------------------------------------------------------------------------------

FORMATS = {
    '.json': damage_json,
    '.jsonl': damage_json,
    '.csv': damage_csv,
    '.safetensors': damage_header,
    '.h5': damage_hdf5,
}


def damage(path, rng, others=(), twin=None):
    "Damage the file `path`; the way and what was done. `twin`: the same file of another run"
    x = rng.random()
    if x < 0.13:
        return damage_instead(path, rng, others)
    if x < 0.18 and twin is not None and twin.is_file():
        shutil.copy(twin, path)
        return 'mixed', f'{path.name} of another run'
    inside = FORMATS.get(path.suffix)
    if x < 0.45 and inside and path.stat().st_size:
        if path.suffix == '.safetensors' and rng.random() < 0.3:
            return damage_state(path, rng)
        return inside(path, rng)
    return damage_bytes(path, rng)
