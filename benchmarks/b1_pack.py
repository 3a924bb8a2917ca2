"B1: packing a dense file, against h5py and pyarrow reading the same file in order"
import tempfile, time
from pathlib import Path
from unittest.mock import patch
from timing import fresh_process, median, number, ratio, show, side_by_side, spread, table
import h5py, numpy as np, pyarrow.parquet as pq
import jetbook.data.store
from jetbook.data.store import toy_jets
from jetbook.data.files import open_source, pack, verify
from samples import dense, nested, what

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

def read_alone(path):
    "What `pack` reads, and nothing else"
    src = open_source(path)
    for i in range(0, src.n, src.step): src.read(i, min(i+src.step, src.n))

def read_parquet(path, n=64):
    with pq.ParquetFile(path, buffer_size=2**20) as f:
        for b in f.iter_batches(n, columns=['X_jets']): b.column(0).flatten().flatten().flatten().to_numpy()

ONE,TWO = '`pack`, one thread','`pack`, two threads'

def packers(path, out, n):
    "`pack` in one and in two threads, each to a store of its own"
    def _in(threads):
        def _pack():
            with patch.object(jetbook.data.store, 'n_threads', lambda: threads): pack(path, out.with_suffix(f'.{threads}.h5'), overwrite=True, progress=False)
        return _pack
    return {ONE: (_in(1), n), TWO: (_in(2), n)}

def small_file(tmp, rounds=9):
    "Milliseconds of packing next to nothing"
    p,times = toy_jets(4).to_dense(Path(tmp)/'few.h5'),[]
    for _ in range(rounds):
        start = time.perf_counter(); pack(p, Path(tmp)/'few.jets.h5', overwrite=True, progress=False); times.append(time.perf_counter()-start)
    return 1e3*median(times)

def main(tmp, quick=False):
    n = 1000 if quick else 12_000
    few,rounds = n//6,3 if quick else 7
    path,gz = dense(tmp, 'contiguous', n),dense(tmp, 'gzip', few, chunks=(16,125,125,3), compression='gzip')
    rows_of_one,out = nested(tmp, few),Path(tmp)/'b1.jets.h5'
    of = {f'contiguous, {n:,} jets, {path.stat().st_size/1e9:.2f} GB': side_by_side({
              'h5py, slices of 256 jets': (lambda: read_slices(path), n), 'h5py, `read_direct` into a reused array of 22 jets': (lambda: read_direct(path), n),
              'read as `pack` does, and no more': (lambda: read_alone(path), n), **packers(path, out, n)}, rounds),
          f'16-jet gzip chunks, {few:,} jets, {gz.stat().st_size/1e6:.0f} MB': side_by_side({
              'h5py, slices of 256 jets': (lambda: read_slices(gz), few), **packers(gz, out, few)}, rounds),
          f'parquet, one jet a row group, {few:,} jets, {rows_of_one.stat().st_size/1e6:.0f} MB': side_by_side({
              'pyarrow, batches of 64 jets': (lambda: read_parquet(rows_of_one), few), **packers(rows_of_one, out, few)}, rounds)}
    rows = [[title, k, number(median(r)), spread(r), number(median(r)*46875*4/1e9), *('' if k in (ONE,TWO) else f'{ratio(rs,p,k):.2f}' for p in (ONE,TWO))]
            for title,rs in of.items() for k,r in rs.items()]
    for p in packers(path, out, n).values(): p[0]()
    one,two = (out.with_suffix(f'.{k}.h5') for k in (1,2))
    same,alike = verify(one, path, progress=False),one.read_bytes()==two.read_bytes()
    mem,dense_bytes = fresh_process(PEAK, path, tmp),path.stat().st_size
    return '\n\n'.join(['## B1: packing a dense file', f'Jets: {what()}. The file lies in the page cache; `pack` also writes the store and checks it on opening. All in one thread but where two are named.',
        table(['file','way','jets/s (median)','lowest to highest','dense GB/s','`pack` is so many times as fast','in two threads'], rows),
        f'Every jet of the store is the source\'s, bit for bit: {same["identical"]} ({same["compared"]:,} compared). One and two threads give the same file: {alike}. '
        f'Of each `pack`, {small_file(tmp):.0f} ms are those of a file of 4 jets. '
        f'Packing those {dense_bytes/1e9:.2f} GB took at most {mem["grown"]/1e6:.0f} MB beyond the imported library ({mem["total"]/1e6:.0f} MB in all).'])

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as t: show(main(t))
