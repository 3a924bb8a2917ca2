"What holds for the project as a whole: imports run downward, nothing unpickles, a setting stands in one place"
import ast, json, re, shlex, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIB = ROOT/'jetbook'
MODULES = {'.'.join(p.relative_to(LIB).with_suffix('').parts):p for p in sorted(LIB.rglob('[!_]*.py'))} # 'data.store': its file
TREES = {k:ast.parse(p.read_text(encoding='utf-8')) for k,p in MODULES.items()}

config = ConfigParser(delimiters=['='])
config.read(ROOT/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']

# --- the rooms: a module imports only from notebooks with a smaller number

def chapters():
    "Modules in the order of the notebooks' numbers; one that a second cell of a notebook exports to stands beside that notebook's own"
    order = {}
    for i,fn in enumerate(sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))):
        text = '\n'.join(''.join(c['source']) for c in json.loads(fn.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code')
        for m in re.findall(r'^#\s*\|\s*(?:default_exp|export[is]?) +([\w.]+)\s*$', text, re.M): order.setdefault(m, i)
    return order

ORDER = chapters()

def imported(tree):
    "Every module that `tree` imports, anywhere in it, as (name, level, line); a `from` import also counts what it takes from a package"
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): yield from ((a.name, 0, n.lineno) for a in n.names)
        elif isinstance(n, ast.ImportFrom):
            if n.module: yield n.module, n.level, n.lineno
            else: yield from ((a.name, n.level, n.lineno) for a in n.names)

def absolute(mod, name, level):
    "The module of this library that an import in `mod` names, without `jetbook.`, or None"
    if level:
        package = mod.split('.')[:-level] if level<=mod.count('.')+1 else []
        return '.'.join([*package, name]) if package or name in MODULES else name
    return name.removeprefix('jetbook.') if name.startswith('jetbook.') else None

def inner(mod, tree): return {m for name,level,_ in imported(tree) if (m := absolute(mod, name, level)) in MODULES}

def outer(tree): return {name.split('.')[0] for name,level,_ in imported(tree) if not level} - {'jetbook'} - set(sys.stdlib_module_names)

def private(tree):
    "Names of another module's own that `tree` takes"
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and (n.level or (n.module or '').startswith('jetbook')):
            yield from (a.name for a in n.names if a.name.startswith('_') and not a.name.startswith('__') and a.name!='_modidx')

def by_string(tree):
    "Imports that no reader and no tool can follow"
    for n in ast.walk(tree):
        if isinstance(n, ast.Call) and ast.unparse(n.func).split('.')[-1] in ('import_module','__import__'): yield n

def test_every_module_has_a_chapter(): assert set(ORDER)==set(MODULES)

@pytest.mark.parametrize('mod', MODULES)
def test_imports_run_downward(mod):
    later = {m for m in inner(mod, TREES[mod]) if ORDER[m] > ORDER[mod]}
    if mod=='data.store': later -= {'data.hdf5'} # in `JetStore.__init__`, so that a store opens wherever the class is, also in a worker
    if mod=='data.files': later -= {'data.particles'} # in `_readers`, so that `pack` knows the readers of particles, which add themselves
    assert later==set(), f'{mod} imports what comes after it'

@pytest.mark.parametrize('mod', MODULES)
def test_nothing_private_is_taken(mod): assert list(private(TREES[mod]))==[]

@pytest.mark.parametrize('mod', MODULES)
def test_nothing_is_imported_by_a_string(mod):
    allowed = {'data.store': ['importlib.import_module(module)'],  # `require`: a package of an extra; methods of other chapters
               'train.recipes': ['importlib.import_module(where)']}.get(mod, []) # `import_recipes`: a module of the user's
    assert [ast.unparse(n) for n in by_string(TREES[mod]) if ast.unparse(n) not in allowed]==[]

def test_the_checks_of_imports_find_it():
    assert inner('graphs.nodes', ast.parse('from ..data.store import JetStore'))=={'data.store'}
    assert inner('graphs.nodes', ast.parse('def f():\n from jetbook.graphs.batches import graphs'))=={'graphs.batches'}
    assert inner('cli', ast.parse('from .train import runs'))==set() and inner('graphs.nodes', ast.parse('from .edges import knn_edges'))=={'graphs.edges'}
    assert list(private(ast.parse('from ..data.store import _secret, JetStore')))==['_secret']
    assert len(list(by_string(ast.parse("importlib.import_module('jetbook.' + m)"))))==1

# --- `jetbook.all`

def test_no_name_means_two_things():
    homes = {}
    for mod in MODULES:
        if mod in ('all', 'cli', 'demo'): continue
        for n in TREES[mod].body:
            if isinstance(n, ast.Assign) and ast.unparse(n.targets[0])=='__all__':
                for name in ast.literal_eval(n.value): homes.setdefault(name, []).append(mod)
    assert {k:v for k,v in homes.items() if len(v)>1}=={}

def test_all_hands_on_every_public_name():
    import jetbook.all
    for mod in MODULES:
        if mod in ('all', 'cli', 'demo') or mod.split('.')[-1] in ('kernels', 'packing'): continue
        for name in sys.modules[f'jetbook.{mod}'].__all__: assert hasattr(jetbook.all, name), f'{mod}.{name}'

# --- recipes

def test_entry_points_are_the_recipes():
    "settings.ini names every function and class that `@recipe` registers, and no other"
    listed = dict(o.split('=', 1) for o in cfg['recipes'].split())
    there = {}
    for mod,tree in TREES.items():
        for n in tree.body:
            calls = [d for d in getattr(n, 'decorator_list', ()) if ast.unparse(d.func if isinstance(d, ast.Call) else d)=='recipe']
            for d in calls:
                name = d.args[0].value if isinstance(d, ast.Call) and d.args else next((k.value.value for k in getattr(d, 'keywords', ()) if k.arg=='name'), n.name)
                there[name] = f'jetbook.{mod}:{n.name}'
    assert listed==there

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
def test_nothing_unpickles(mod):
    allowed = {'train.recipes':['known[name].load'], 'data.files':['builder.load']}.get(mod, []) # an entry point of an installed package; LLVM's instruction
    assert [what for _,what in unsafe(TREES[mod]) if what not in allowed]==[]

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
    assert requires('requirements') - used == set()

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
    names = [p.relative_to(ROOT/'nbs').as_posix() for g in ('[0-9]*.ipynb', 'tour.ipynb', 'studies/*.ipynb') for p in (ROOT/'nbs').glob(g)]
    assert [n for n in names if f'({n})' not in index] == []

def test_importing_the_store_needs_no_development_tool():
    "What `pip install jetbook` brings is enough, and nothing heavy comes with the store"
    code = "import sys, jetbook.data.store; print(*sorted({'nbdev','execnb','sphinx','pytest','pythia8mc','fastjet','fastai','torch','numba','pandas','matplotlib'} & set(sys.modules)))"
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
