"""The simulation: requests that cannot be met, and the order of a sample. Needs `pip install 'jetbook[sim]'`."""
import os, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, pytest
from fastcore.test import test_eq as eq, test_fail as fails, test_ne as ne
pytest.importorskip('pythia8mc')
pytest.importorskip('fastjet')
from jetbook.data.observables import wrap_phi
from jetbook.simulate.events import Events
from jetbook.simulate.jets import clean, flip, make_detector, simulate, wqcd_steps


def test_requests_that_cannot_be_met():
    fails(lambda: simulate('top', 10), contains='qg or wqcd')
    fails(lambda: simulate('qg', 1), contains='2 or more')
    fails(lambda: simulate('qg', 10, seed=-1), contains='seed')
    fails(lambda: simulate('qg', 10, workers=0), contains='1 or more')
    fails(lambda: simulate('qg', 10, filed=1.), contains='field')
    fails(lambda: make_detector(field=-1), contains='0 or more')
    fails(lambda: wqcd_steps(5, process='top'), contains='W or QCD')
    fails(lambda: Events('top'), contains='gluon or quark or QCD or W')


def test_a_small_sample():
    jets = simulate('qg', 60, seed=5, workers=1, progress=False)
    eq((jets.channels, jets.upsample['HCAL'], jets.columns['y'].sum()), (('Tracks', 'ECAL', 'HCAL'), 5, 30))
    assert 5 < jets.columns['y'][:30].sum() < 25  # the classes are mixed
    ne(simulate('qg', 24, seed=8, workers=1, progress=False).columns['pt'], simulate('qg', 24, seed=7, workers=1, progress=False).columns['pt'])


def test_columns_of_w_and_qcd_jets():
    jets = simulate('wqcd', 4, seed=5, workers=1, progress=False)
    eq(list(jets.columns)[:11], 'signal jet_pt jet_eta jet_phi jet_mass jet_delta_R tau_1 tau_2 tau_3 tau_21 tau_32'.split())


def test_wrap_phi_of_many_turns():
    eq(wrap_phi(np.array([7.]))[0], 7-2*np.pi)


def test_flip_is_its_own_limit():
    x = np.random.default_rng(0).random((20, 25, 25))
    eq(flip(flip(x)), flip(x))
    eq(flip(x[:, :, ::-1].copy()), flip(x))
    eq(clean(np.array([[[5e-4, 2e-3]]])), [[[0, 2e-3]]])


def test_more_jets_than_memory_holds():
    fails(lambda: simulate('qg', 10**14), contains='do not fit in memory')


def test_the_output_is_refused_before_anything_is_simulated(tmp_path, monkeypatch):
    import jetbook.simulate.jets as module
    monkeypatch.setattr(module, 'make_block', lambda *args: pytest.fail('simulated'))
    (tmp_path/'mine.h5').write_text('mine')
    (tmp_path/'link.h5').symlink_to(tmp_path/'mine.h5')
    for name, why in (('', 'No name'), ('mine.h5', 'already exists'), ('link.h5', 'is a link'), ('.', 'is a folder')):
        fails(lambda: simulate('qg', 10, dest=name and tmp_path/name, overwrite=False, progress=False), contains=why)
    eq((tmp_path/'mine.h5').read_text(), 'mine')


CODE = """
from jetbook.simulate.jets import simulate
if __name__ == '__main__': simulate('wqcd', 600, 3, 2, {!r}, progress=False)
"""


def _children(pid):
    "Processes below `pid`, by their own account"
    found = []
    for p in Path('/proc').glob('[0-9]*'):
        try: ppid = int((p/'stat').read_text().rsplit(')', 1)[1].split()[1])
        except (OSError, IndexError): continue
        if ppid == pid: found += [int(p.name), *_children(int(p.name))]
    return found


def _running(pid):
    try: return (Path('/proc')/str(pid)/'stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except OSError: return False


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks into /proc')
@pytest.mark.parametrize('wait', [0., 1.5])
def test_killed_with_two_workers(tmp_path, wait):
    "SIGKILL of the parent while its workers start, or while they work: they end too, nothing is left, another run does it all"
    (tmp_path/'s.py').write_text(CODE.format(str(tmp_path/'s.jets.h5')))
    p = subprocess.Popen([sys.executable, tmp_path/'s.py'], stderr=subprocess.DEVNULL)
    end = time.time()+60
    while len(_children(p.pid)) < 3 and time.time() < end: time.sleep(.02)  # two workers and a tracker of resources
    time.sleep(wait)
    workers = _children(p.pid)
    assert len(workers) >= 3 and p.poll() is None
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    end = time.time()+30
    while any(map(_running, workers)) and time.time() < end: time.sleep(.05)
    assert not any(map(_running, workers))
    eq([q.name for q in tmp_path.iterdir()], ['s.py'])


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks into /proc')
def test_a_worker_that_is_killed(tmp_path):
    "As by a machine short of memory: an error that says so, not a wait without end"
    code = CODE.format(str(tmp_path/'s.jets.h5')).replace("simulate('wqcd'", "tell('wqcd'").replace('if __name', """
def tell(*args, **kwargs):
    try: simulate(*args, **kwargs)
    except Exception as e: print(type(e).__name__, e)
if __name""", 1)
    (tmp_path/'s.py').write_text(code)
    p = subprocess.Popen([sys.executable, tmp_path/'s.py'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    end = time.time()+60
    spawned = []
    while len(spawned) < 2 and time.time() < end:
        time.sleep(.05)
        spawned = [c for c in _children(p.pid) if 'spawn_main' in (Path('/proc')/str(c)/'cmdline').read_text()]
    os.kill(spawned[0], signal.SIGKILL)
    said = p.communicate(timeout=60)[0]
    assert said.startswith('SimulationError A worker process ended') and 'workers=1' in said, said
    eq([q.name for q in tmp_path.iterdir()], ['s.py'])
