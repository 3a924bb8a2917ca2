"What holds for the project as a whole: imports run downward, nothing unpickles, a setting stands in one place"
import ast, re, shlex, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {p.stem:p for p in sorted((ROOT/'jetbook').glob('[!_]*.py'))}
TREES = {k:ast.parse(p.read_text(encoding='utf-8')) for k,p in MODULES.items()}

config = ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

DATA = {'data','files','transforms','loaders'}
# the rooms: which modules of the library each may import
ROOMS = dict(hdf5=set(), data={'hdf5'}, files={'data'}, events={'data'}, simulate={'data','files','events'}, observables={'data'}, transforms={'data'}, loaders={'data','transforms'}, losses=set(), metrics={'losses'},
             runs=DATA|{'losses','metrics'})
ROOMS['conv_ae'] = DATA|{'observables','losses','metrics','runs'}
ROOMS['dense_ae'] = ROOMS['conv_ae']|{'conv_ae'}
ROOMS['sparse_ae'] = ROOMS['conv_ae']|{'conv_ae'}
ROOMS['compress'] = ROOMS['dense_ae']|{'dense_ae','sparse_ae'}
ROOMS['codec'] = ROOMS['compress']|{'compress'}
ROOMS['vae'] = ROOMS['sparse_ae']|{'sparse_ae'}
ROOMS['edges'] = DATA
ROOMS['graphs'] = DATA|{'observables','losses','metrics','runs','edges'}
ROOMS['gnn'] = DATA|{'observables','losses','metrics','runs','edges','graphs'}
ROOMS['contrastive'] = ROOMS['gnn']|{'gnn'}
ROOMS['sets'] = ROOMS['gnn']
ROOMS['fusion'] = ROOMS['sets']|{'sets'}
ROOMS['taggers'] = ROOMS['contrastive']|{'contrastive','sets','fusion'}
ROOMS['latent'] = ROOMS['vae']|{'vae'}
ROOMS['anomaly'] = ROOMS['latent']|{'latent','dense_ae'}
for room in ('reconstruction','density','dirichlet','nae','surrogates'): ROOMS[room] = ROOMS['anomaly']|{'anomaly'}
ROOMS['cwola'] = ROOMS['density']|{'density'}
ROOMS['search'] = set(ROOMS)
ROOMS['demo'] = set(ROOMS)
ROOMS['cli'] = set(ROOMS)
for may in ROOMS.values():
    if 'data' in may: may.add('hdf5') # whose names `data` hands on

def imported(tree):
    "Every module that `tree` imports, anywhere in it, as (name, level, line); a `from` import also counts what it takes from a package"
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): yield from ((a.name, 0, n.lineno) for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            if n.module: yield n.module, n.level, n.lineno
            else: yield from ((a.name, n.level, n.lineno) for a in n.names)

def inner(tree): 
    "Modules of this library that `tree` imports"
    for name,level,_ in imported(tree):
        parts = name.split('.')
        if level: yield parts[0]
        elif parts[0]=='jetbook' and len(parts)>1: yield parts[1]

def outer(tree): return {name.split('.')[0] for name,level,_ in imported(tree) if not level} - {'jetbook'} - set(sys.stdlib_module_names)

@pytest.mark.parametrize('mod', MODULES)
def test_imports_run_downward(mod):
    assert mod in ROOMS, f'{mod} has no room: give it one in ROOMS, and say what it may import'
    assert set(inner(TREES[mod])) - {'__version__','_modidx'} <= ROOMS[mod]

def test_no_circles():
    seen = {}
    def visit(m, path=()):
        assert m not in path, ' -> '.join((*path,m))
        if m not in seen: seen[m] = [visit(o, (*path,m)) for o in ROOMS[m]]
    for m in ROOMS: visit(m)

# what opens a file that can carry code
UNPICKLES = {'pickle','cPickle','_pickle','dill','cloudpickle','joblib','shelve','marshal'}
LOADERS = {'load_learner','read_pickle','read_hdf','load_model','SaveModelCallback','TrackerCallback','load_state_dict_from_url','eval','exec'}
SAFE_LOADS = {'json','np','numpy'}

def unsafe(tree):
    "Lines of `tree` on which something is unpickled or run from a file"
    for name,_,line in imported(tree):
        if name.split('.')[0] in UNPICKLES: yield line, f'import {name}'
    for n in ast.walk(tree):
        if not isinstance(n, ast.Call): continue
        name = n.func.id if isinstance(n.func, ast.Name) else n.func.attr if isinstance(n.func, ast.Attribute) else ''
        owner = ast.unparse(n.func.value) if isinstance(n.func, ast.Attribute) else ''
        if name in LOADERS and owner in ('','pd','pandas','torch','fastai','builtins'): yield n.lineno, ast.unparse(n.func)
        if name=='load' and owner and owner not in SAFE_LOADS: yield n.lineno, ast.unparse(n.func)
        if any(k.arg=='allow_pickle' and not (isinstance(k.value, ast.Constant) and k.value.value is False) for k in n.keywords): yield n.lineno, 'allow_pickle'

@pytest.mark.parametrize('mod', MODULES)
def test_nothing_unpickles(mod): assert list(unsafe(TREES[mod]))==[]

@pytest.mark.parametrize('code', ['import pickle', 'from joblib import load', 'torch.load(f)', 'torch.load(f, weights_only=True)', 'np.load(f, allow_pickle=True)',
                                  'np.load(f, allow_pickle=flag)', 'pd.read_pickle(f)', 'load_learner(f)', 'learn.load("best")', 'eval(s)'])
def test_the_check_for_pickle_finds_it(code): assert list(unsafe(ast.parse(code)))

@pytest.mark.parametrize('code', ['json.load(f)', 'np.load(f)', 'np.load(f, allow_pickle=False)', 'load_bundle(f)', 'model.eval()', 'load_file(f)'])
def test_the_check_for_pickle_spares_the_rest(code): assert not list(unsafe(ast.parse(code)))

def dist(req): return re.match(r'[\w.-]+', req)[0].lower().replace('_','-')
# import name of a distribution where it is another
NAMES = {'scikit-learn':'sklearn', 'torch-geometric':'torch_geometric'}
def requires(key): return {NAMES.get(d,d) for d in map(dist, shlex.split(cfg[key]))}

def test_requirements_are_what_is_imported():
    "No package that is imported but not required, and none that is required for nothing"
    used = set().union(*map(outer, TREES.values()))
    extras = set().union(*(requires(k) for k in cfg if k.endswith('_requirements')))
    assert used <= requires('requirements')|extras
    later = {'torch_geometric'}     # the graph notebooks' own
    assert requires('requirements') - used <= later

def test_extras_are_imported_where_used():
    "A module imports without any extra"
    optional = set().union(*(requires(k) for k in cfg if k.endswith('_requirements'))) - requires('requirements')
    for mod,tree in TREES.items():
        top = ast.Module([n for n in tree.body if isinstance(n, (ast.Import,ast.ImportFrom))], [])
        assert not outer(top)&optional, mod

def test_version_stands_in_one_place():
    import jetbook
    assert jetbook.__version__==cfg['version'] # written by nbdev_export
    text = re.compile(rf'(?<![\d.]){re.escape(cfg["version"])}(?![\d.])')
    places = [p for d in ('jetbook','docs','tests','benchmarks','.github','.ci') for p in (ROOT/d).rglob('*') if p.suffix in ('.py','.sh','.yaml','.yml')]
    places += [ROOT/o for o in ('setup.py','Makefile','MANIFEST.in','.ci/run')]
    assert [str(p.relative_to(ROOT)) for p in places if p.name!='__init__.py' and '_nbs' not in p.parts and text.search(p.read_text(encoding='utf-8'))] == []
    assert cfg['version'] in (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')

def test_init_holds_the_version_only():
    body = ast.parse((ROOT/'jetbook'/'__init__.py').read_text(encoding='utf-8')).body
    assert [n.targets[0].id for n in body]==['__version__']

def test_front_page_lists_every_notebook():
    index = (ROOT/'nbs'/'index.ipynb').read_text(encoding='utf-8')
    assert [p.stem for p in (ROOT/'nbs').glob('[0-9]*.ipynb') if f'({p.name})' not in index] == []

def test_importing_the_store_needs_no_development_tool():
    "What `pip install jetbook` brings is enough, and nothing heavy comes with the store"
    code = "import sys, jetbook.data.store; print(*sorted({'nbdev','execnb','sphinx','pytest','pythia8mc','fastjet','fastai'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()==''

import runnb

@pytest.mark.parametrize('said,kept', [
    ('plain\n', 'plain\n'),
    ('\rx:  25%|##5       | 5/20 [00:00<00:00, 49.55it/s]\rx: 100%|##########| 20/20 [00:00<00:00, 49.36it/s]\n', ''),
    ('█\repoch     train_loss  time    \n█\r\rEpoch 1/3 : |----| 0.00% [0/80 00:00<?]\r0         1.02    00:03                       \n', 'epoch     train_loss\n0         1.02\n'),
    (f'{ROOT}/nbs/a.h5', 'nbs/a.h5'),
    ('the clock says 12:30', 'the clock says 12:30')])
def test_stored_output_is_tidy(said, kept): assert runnb.tidy(said)==kept

def test_foreign_deprecations_are_left_out():
    own = "<ipython-input-1-1>:1: UserWarning: hello\n  warnings.warn('hello')\n"
    assert runnb.tidy('/x/site-packages/torch/a.py:3: FutureWarning: gone\n  warnings.warn(\n'+own, stderr=True)==own

def test_runnb_knows_a_notebook_by_its_number():
    first = runnb.notebooks()[0]
    assert runnb.find(first.stem)==runnb.find(first.stem.split('_')[0])==runnb.find(str(first))==first
    with pytest.raises(SystemExit, match='no notebook'): runnb.find('99_nothing')
