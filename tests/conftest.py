"What several test files share: settings of hypothesis, small files to spoil, and Python in a limited process of its own"
import os, subprocess, sys, textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent

# the same examples on every run: a test that fails, fails again
settings.register_profile('jetbook', derandomize=True, database=None, deadline=None, print_blob=False,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture])
settings.load_profile('jetbook')

PREAMBLE = """
import os, resource, sys, warnings
warnings.filterwarnings('ignore')
import h5py, numpy as np, torch
from pathlib import Path
from jetbook.data import *
from jetbook.files import *
torch.set_num_threads(1)
"""

def python(code, *args, timeout=120, check=True, **env):
    "Run `code` in a new interpreter that has imported jetbook; `args` are its sys.argv[1:]"
    r = subprocess.run([sys.executable, '-c', PREAMBLE+textwrap.dedent(code), *map(str,args)], cwd=ROOT, timeout=timeout, text=True,
                       errors='replace', stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, 'OMP_NUM_THREADS':'1', **env})
    if check: assert r.returncode==0, f'exit {r.returncode}\n{r.stdout[-2000:]}\n{r.stderr[-4000:]}'
    return r

@pytest.fixture(scope='session')
def toys():
    "Toy quark/gluon jets"
    from jetbook.data import toy_jets
    return toy_jets(40)

@pytest.fixture
def store_file(toys, tmp_path):
    "A packed store on disk"
    return toys.save(tmp_path/'toy.jets.h5')

@pytest.fixture
def dense_file(toys, tmp_path):
    "A dense file in the CMS layout"
    import jetbook.files
    return toys.to_dense(tmp_path/'toy.h5')
