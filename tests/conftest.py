"What several test files share: settings of hypothesis, small files to spoil, and a process of one's own with limits"
import os, pickle, resource, signal, traceback, warnings
os.environ.setdefault('OMP_NUM_THREADS', '1') # before torch: `child` forks, and OpenMP's threads do not live on in a fork: it would wait for them for ever
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# the same examples on every run: a test that fails, fails again
settings.register_profile('jetbook', derandomize=True, database=None, deadline=None, print_blob=False,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture])
settings.load_profile('jetbook')

def _status(key): return next(int(l.split()[1])>>10 for l in open('/proc/self/status') if l.startswith(key+':')) # MiB

Ended = namedtuple('Ended', 'value error signal peak') # what a function returned, its error, the signal that killed it, MiB it took

def quiet(source, dest, **kwargs):
    "Pack without a bar and without warnings"
    from jetbook.data.files import pack
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return pack(source, dest, progress=False, overwrite=True, **kwargs)

def child(fn, *args, mb=None, fsize=None, meanwhile=None, timeout=120, **kwargs):
    """Run `fn(*args, **kwargs)` in a process of its own (a fork) with at most `mb` MiB more of addresses and files of at most
    `fsize` bytes, and `meanwhile(pid)` here; SIGALRM after `timeout` seconds"""
    r,w = os.pipe()
    if not (pid := os.fork()):
        try:
            signal.alarm(timeout)
            Path('/proc/self/clear_refs').write_text('5') # forget the parent's peak
            for what,n in ((resource.RLIMIT_AS, mb and mb+_status('VmSize')<<20), (resource.RLIMIT_FSIZE, fsize)):
                if n: resource.setrlimit(what, (n,n))
            start,value,error = _status('VmRSS'),None,None
            try: value = fn(*args, **kwargs)
            except BaseException as e: error = type(e).__name__,str(e),traceback.format_exc()
            with open(w,'wb') as f: pickle.dump((value,error,_status('VmHWM')-start), f)
        finally: os._exit(0)
    os.close(w)
    try:
        if meanwhile: meanwhile(pid)
    except BaseException: os.kill(pid, signal.SIGKILL); raise
    with open(r,'rb') as f: said = f.read()
    end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    value,error,peak = pickle.loads(said) if said else (None,None,None)
    return Ended(value, error, -end if end<0 else None, peak)

def survives(*args, **kwargs):
    "`child`, which must come to its end without an error; returns value and peak memory"
    e = child(*args, **kwargs)
    assert e.signal is None, f'killed by {signal.Signals(e.signal).name}'
    assert e.error is None, e.error[2]
    return e.value,e.peak

def tamper(folder, **change):
    "Change settings of a bundle as somebody does who can make checksums"
    import json
    from jetbook.train.training import load_tensors, save_tensors, text_checksum, write_json
    config = {**json.loads((folder/'config.json').read_text()), **change}
    write_json(folder/'config.json', config)
    tensors,meta = load_tensors(folder/'model.safetensors')
    save_tensors(folder/'model.safetensors', tensors, {**meta, 'config':str(text_checksum(config))})

@pytest.fixture(scope='session')
def toys():
    "Toy quark/gluon jets"
    from jetbook.data.store import toy_jets
    return toy_jets(40)

@pytest.fixture
def store_file(toys, tmp_path):
    "A packed store on disk"
    return toys.save(tmp_path/'toy.jets.h5')

@pytest.fixture
def dense_file(toys, tmp_path):
    "A dense file in the CMS layout"
    import jetbook.data.files
    return toys.to_dense(tmp_path/'toy.h5')
