"B1: packing a dense file, against h5py reading the same file in order"
import math, tempfile
from pathlib import Path
from timing import fresh_process, median, number, ratio, show, side_by_side, spread, table
import h5py, numpy as np
from jetbook.data.store import JetStore
from jetbook.data.files import pack, verify
from samples import dense, what

def read_slices(path, n=256):
    "As one reads a large file: `n` jets, and the next `n`"
    with h5py.File(path) as f:
        d = f['X_jets']
        for i in range(0, len(d), n): d[i:i+n]

def read_direct(path, n=22):
    "The fastest h5py has: into an array that is used again, small enough for the processor's cache"
    with h5py.File(path) as f:
        d = f['X_jets']
        x = np.empty((n,*d.shape[1:]), d.dtype)
        for i in range(0, len(d), n): m = min(n, len(d)-i); d.read_direct(x, np.s_[i:i+m], np.s_[:m])

PEAK = """
from jetbook.data.store import toy_jets
from jetbook.data.files import pack
from pathlib import Path
src,tmp = sys.argv[1],Path(sys.argv[2])
small = toy_jets(200).to_dense(tmp/'small.h5'); pack(small, tmp/'small.jets.h5', progress=False)
before = status('VmRSS'); peak_from_here()
pack(src, tmp/'peak.jets.h5', progress=False)
print(json.dumps(dict(grown=status('VmHWM')-before, total=status('VmHWM'))))
for p in ('small.h5','small.jets.h5','peak.jets.h5'): (tmp/p).unlink()
"""

def main(tmp, quick=False):
    n = 1000 if quick else 12_000
    path,gz = dense(tmp, 'contiguous', n),dense(tmp, 'gzip', n//6, chunks=(16,125,125,3), compression='gzip')
    out = Path(tmp)/'b1.jets.h5'
    def _pack(p): return lambda: pack(p, out, overwrite=True, progress=False)
    rates = side_by_side({'h5py, slices of 256 jets': (lambda: read_slices(path), n), 'h5py, `read_direct` into a reused array of 22 jets': (lambda: read_direct(path), n),
                          '`pack`': (_pack(path), n)}, 3 if quick else 7)
    zipped = side_by_side({'h5py, slices of 256 jets': (lambda: read_slices(gz), n//6), '`pack`': (_pack(gz), n//6)}, 3 if quick else 5)
    same = verify(pack(path, out, overwrite=True, progress=False).path, path, progress=False)
    mem,dense_bytes = fresh_process(PEAK, path, tmp),path.stat().st_size
    rows = [[title, k, number(median(r)), spread(r), number(median(r)*46875*4/1e9), f'{ratio(rs,"`pack`",k):.2f}' if k!='`pack`' else '']
            for title,rs in ((f'contiguous, {n:,} jets, {dense_bytes/1e9:.2f} GB',rates), (f'16-jet gzip chunks, {n//6:,} jets, {gz.stat().st_size/1e6:.0f} MB',zipped)) for k,r in rs.items()]
    return '\n\n'.join(['## B1: packing a dense file', f'Jets: {what()}. The file lies in the page cache; `pack` also writes the store and checks it on opening.',
        table(['file','way','jets/s (median)','lowest to highest','dense GB/s','`pack` is so many times as fast'], rows),
        f'Every jet of the store is the source\'s, bit for bit: {same["identical"]} ({same["compared"]:,} compared). '
        f'Packing those {dense_bytes/1e9:.2f} GB took at most {mem["grown"]/1e6:.0f} MB beyond the imported library ({mem["total"]/1e6:.0f} MB in all).'])

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as t: show(main(t))
