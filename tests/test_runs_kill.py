"""A training process that is killed with SIGKILL ends, when resumed, at the figures of an unbroken one."""
import os,signal,subprocess,sys,time
from pathlib import Path
import pandas as pd, pytest

SCRIPT = '''
import sys,time
from fastai.callback.core import Callback
from jetbook.data.store import toy_jets
from jetbook.train.recipes import recipe
from jetbook.train.training import toy_learner
from jetbook.train.runs import train

@recipe(task='classify', lr_max=.05)
def killable(store, split, *, width=16, dropout=.3):
    "One hidden layer, with dropout so that the random state matters"
    return toy_learner(store, split, width=width, dropout=dropout)

class Slow(Callback):
    "Leaves the other process time to strike in the middle of an epoch"
    def __init__(self, seconds): self.seconds = seconds
    def after_batch(self): time.sleep(self.seconds)

out,pause = sys.argv[1],float(sys.argv[2])
train('killable', toy_jets(400, 'wqcd'), out, epochs=6, seed=5, progress=False, cbs=[Slow(pause)])
'''

def start(script, out, pause=0.):
    env = {**os.environ, 'OMP_NUM_THREADS':'1'}
    return subprocess.Popen([sys.executable, '-W', 'ignore', script, out, str(pause)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

def finish(p):
    err = p.communicate(timeout=300)[1]
    assert p.returncode==0, err[-3000:]

def wait_for(p, ready, timeout=200):
    end = time.time()+timeout
    while not ready():
        assert p.poll() is None, p.communicate()[1][-3000:]
        assert time.time() < end, 'the training never got that far'
        time.sleep(.02)

def history(out): return pd.read_csv(out/'history.csv').drop(columns='seconds')

@pytest.fixture(scope='module')
def script(tmp_path_factory):
    f = tmp_path_factory.mktemp('script')/'training.py'
    f.write_text(SCRIPT)
    return f

@pytest.fixture(scope='module')
def unbroken(script, tmp_path_factory):
    out = tmp_path_factory.mktemp('unbroken')/'run'
    finish(start(script, out))
    return out

@pytest.mark.skipif(os.name=='nt', reason='SIGKILL')
def test_killed_and_resumed(script, unbroken, tmp_path):
    out = tmp_path/'run'
    for epochs in (1,3):                                          # two kills, in different epochs
        p = start(script, out, pause=.1)
        wait_for(p, lambda: (out/'history.csv').exists() and len(history(out)) >= epochs)
        time.sleep(.25)                                           # into the next epoch
        p.send_signal(signal.SIGKILL)
        assert p.wait(60)==-signal.SIGKILL
        p.stderr.close()
        assert not (out/'model.safetensors').exists()
        assert epochs <= len(history(out)) < 6
    finish(start(script, out))
    assert (out/'model.safetensors').read_bytes()==(unbroken/'model.safetensors').read_bytes()
    pd.testing.assert_frame_equal(history(out), history(unbroken), check_exact=True)
    assert not (out/'checkpoint').exists()
    assert [f.name for f in out.iterdir() if f.name.startswith('.')]==['.jetbook.lock']

def test_killed_before_the_first_epoch_ends(script, unbroken, tmp_path):
    out = tmp_path/'run'
    p = start(script, out, pause=.3)
    wait_for(p, lambda: (out/'config.json').exists())
    p.kill(); p.wait(60); p.stderr.close()
    assert not (out/'history.csv').exists()
    finish(start(script, out))
    assert (out/'model.safetensors').read_bytes()==(unbroken/'model.safetensors').read_bytes()
