"The jets that are timed, and the files made of them"
from pathlib import Path
import numpy as np
from jetbook.data.hdf5 import sample
from jetbook.data.store import toy_jets, ConfigError
import jetbook.data.files

FULL = 139_306 # jets in the CMS Open Data file

def jets(n):
    "`n` quark/gluon jets: the shipped sample, again from its start where it ends"
    try: s = sample('qg')
    except ConfigError: s = toy_jets(2000)
    return s if n==len(s) else s.select(np.arange(n)%len(s))

def what(): s = jets(1); return s.source

def dense(tmp, name, n, **how):
    "A dense HDF5 file of `n` jets in the CMS layout; written once, read once, so that the page cache is hot"
    path = Path(tmp)/f'{name}_{n}.h5'
    if not path.exists(): jets(n).to_dense(path, **how)
    with open(path,'rb') as f:
        while f.read(2**24): pass
    return path
