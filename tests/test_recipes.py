"The register of recipes: names, settings, entry points of other packages, and what listing costs"
import os, subprocess, sys, typing
from pathlib import Path

import numpy as np
import torch
import pytest

from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, DataError, JetbookError, JetStore, toy_jets
from jetbook.train.recipes import RANGES, Recipe, UnknownSetting, get_recipe, import_recipes, recipe, recipes
from jetbook.train.runs import load_bundle, train
from jetbook.train.training import toy_learner

@recipe('kinds', task='reconstruct', reference='dense autoencoders, in small', lr_max=.01, epochs=6)
def kinds(store, split=None, *, width=16, bs=32, scale:float|None=None, kind:typing.Literal['mse']='mse'):
    "A dense autoencoder, for tests"
    return toy_learner(store, split, 'reconstruct', width, bs)

def test_a_recipe_knows_itself():
    r = get_recipe('kinds')
    assert isinstance(r, Recipe) and r.doc=='A dense autoencoder, for tests' and r.reference=='dense autoencoders, in small'
    assert r.check(dict(width=8))==dict(width=8, bs=32, scale=None, kind='mse') and r.check(dict(scale=2))['scale']==2
    assert r.parse(['width=8','scale=None','kind=mse','sizes=[3,4]'])==dict(width=8, scale=None, kind='mse', sizes=[3,4])

@pytest.mark.parametrize('bad,why', [(dict(depth=3), 'width, bs, scale, kind'), (dict(width='8'), 'Expected: int'), (dict(width=True), 'Expected: int'), (dict(scale=float('nan')), 'float or None'),
    (dict(width=8.5), 'Expected: int'), (dict(kind='bce'), "'mse'"), (dict(kind=['mse']), "'mse'"), (dict(width=None), 'Expected: int'), (dict(widht=3), r'widht \(did you mean width\?\)'),
    (dict(lr=.1), r'did you mean lr_max\?')])
def test_settings_without_sense_are_refused(bad, why):
    with pytest.raises(ConfigError, match=why): get_recipe('kinds').check(bad)

def test_text_that_is_no_setting():
    with pytest.raises(ConfigError, match='name=value'): get_recipe('kinds').parse(['width'])

def test_names_are_taken_once():
    with pytest.raises(ConfigError, match='There already is a recipe'): recipe('kinds')(lambda store, split=None: 0)
    with pytest.raises(ConfigError, match=r'did you mean sage\?'): get_recipe('sgae')
    with pytest.raises(ConfigError, match='recipe for another task'): get_recipe('kinds', 'classify')

def test_settings_must_have_defaults_and_names_of_their_own():
    with pytest.raises(ConfigError, match='train takes itself'): recipe('r1')(lambda store, split=None, *, seed=3: 0)
    def no_default(store, split=None, *, width): pass
    with pytest.raises(ConfigError, match='has no default'): recipe()(no_default)

def test_the_list_read_from_source_is_the_list_of_what_is_imported():
    "Names, tasks, references, defaults: without importing a module as after importing it"
    code = "from jetbook.train.recipes import recipes; print(recipes().drop(columns='settings').to_csv())"
    def run(before): return subprocess.run([sys.executable, '-W', 'ignore', '-c', before+code], capture_output=True, text=True, check=True).stdout
    assert run('')==run('import jetbook.all\n')

def test_listing_imports_nothing_that_trains():
    code = "import sys; from jetbook.train.recipes import recipes; recipes(); print(*sorted({'torch','fastai','numba','matplotlib','sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip()==''

PACKAGE = '''
from jetbook.train.recipes import recipe
from jetbook.train.training import toy_learner

@recipe(task='classify', reference='elsewhere', lr_max=.05, epochs=1)
def foreign(store, split=None, *, width=4):
    "A recipe of another package"
    return toy_learner(store, split, width=width)
'''

def test_another_package_adds_a_recipe(tmp_path):
    (tmp_path/'elsewhere.py').write_text(PACKAGE)
    info = tmp_path/'elsewhere-1.0.dist-info'
    info.mkdir()
    (info/'METADATA').write_text('Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n')
    (info/'entry_points.txt').write_text('[jetbook.recipes]\nforeign = elsewhere:foreign\n')
    env = {**os.environ, 'PYTHONPATH':os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])}
    code = ("import sys; from jetbook.train.recipes import recipes; t = recipes(); assert 'elsewhere' not in sys.modules; print(*t.loc['foreign', ['task','reference','about','settings']], sep='|')\n"
            "from jetbook.all import *; r = train('foreign', toy_jets(60, 'wqcd'), sys.argv[1], progress=False); print(r.config['recipe'])")
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, str(tmp_path/'run')], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert out.returncode==0, out.stderr
    assert out.stdout.splitlines()==['classify|elsewhere|A recipe of another package|width=4', 'foreign']


def jets(height, width, channels=1, n=24, layout='array', y=None, **columns):
    "A store of random images"
    rng = np.random.default_rng(0)
    images = rng.lognormal(0, 1, (n, channels, height, width)) * (
        rng.random((n, channels, height, width)) < 0.1
    )
    y = np.arange(n) % 2 if y is None else y
    entries = {}
    for c in range(channels):
        flat = images[:, c].reshape(n, -1)
        offsets = np.concatenate([[0], (flat > 0).sum(1).cumsum()])
        entries[f'c{c}'] = offsets, flat.nonzero()[1], flat[flat > 0]
    columns = {**({} if y is False else dict(y=y)), **columns}
    return JetStore.from_entries(entries, height, width, {}, columns, 'random', layout)


TOWERS = 'normalised_ae dense_vae dirichlet_vae latent_ae remapped_ae sphere_net'.split()
SQUARE = 'conv_ae dense_ae cell_ae sparse_ae sparse_vae unrolled_ae'.split()


@pytest.mark.parametrize('name', TOWERS)
@pytest.mark.parametrize('shape', [(125, 125, 3), (33, 33, 3), (28, 32, 1), (40, 40, 2)])
def test_recipes_for_towers_say_so_before_they_build_anything(name, shape, tmp_path):
    with pytest.raises(
        ConfigError, match=rf'{name} takes other images.*{shape[0]}x{shape[1]}.*towers\(store\)'
    ):
        train(name, jets(*shape, n=16), tmp_path / 'run', progress=False)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', SQUARE)
def test_recipes_for_square_images_say_so(name, tmp_path):
    with pytest.raises(ConfigError, match=f'{name} takes other images'):
        train(name, jets(28, 32), tmp_path / 'run', progress=False)
    assert not (tmp_path / 'run').exists()
    with pytest.raises(ConfigError, match=f'{name} takes other images'):
        get_recipe(name).func(jets(28, 32))


def test_what_does_not_fit_is_said_in_the_recipes_words():
    def why(name, store, **settings):
        with pytest.raises(JetbookError) as e:
            get_recipe(name).guard(store, split(store), settings)
        return str(e.value)

    assert '250x250 pixels' in why('conv_ae', jets(250, 250, n=16))
    assert 'axes=24 of 9 pixels' in why('normalised_ae', jets(3, 3))
    assert 'cells=8 of at most 5' in why('sparse_ae', jets(5, 5))
    assert 'pixel of unknown width' in why('unrolled_ae', jets(25, 25))
    assert '3x3, of at least 4x4' in why('pixel_code', jets(3, 3))
    assert 'transverse momentum and the mass' in why('gat_cheb', jets(25, 25))
    assert 'the mass of jets' in why('gcn_contrastive', jets(25, 25, pt=np.ones(24)))
    assert 'no such channel' in why('conv_ae', jets(25, 25, 2), channels=['c3'])
    assert 'more memory than there is' in why('dense_vae', jets(250, 250, n=16), bs=65536, hidden=16384)


@pytest.mark.parametrize('shape', [(1, 1, 1), (8, 8, 1), (40, 40, 2), (28, 32, 1), (250, 250, 1)])
def test_graph_networks_and_sets_take_any_grid(shape):
    for name in ('sage', 'pfn', 'particle_net', 'vae'):
        get_recipe(name).guard(jets(*shape, n=16))


def test_an_anomaly_method_is_not_trained(tmp_path):
    with pytest.raises(ConfigError, match='nae is an anomaly method.*jetbook fit nae'):
        train('nae', jets(25, 25), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'name,bad',
    [
        ('sage_r2', dict(layers=0)),
        ('sage_r2', dict(layers=10**6)),
        ('remapped_ae', dict(power=-1)),
        ('dense_vae', dict(power=2)),
        ('surrogates', dict(trees=0)),
        ('surrogates', dict(trees=10**9)),
        ('isolation_forest', dict(n_estimators=0)),
        ('particle_net', dict(widths=[])),
        ('particle_net', dict(widths=[0])),
        ('particle_net', dict(widths=[64] * 100)),
        ('cwola', dict(columns=[])),
        ('knn_observables', dict(columns=[])),
        ('ensemble', dict(members=['pfn'] * 1000)),
        ('ensemble', dict(members=[])),
        ('vae', dict(latent=10**7)),
        ('pfn', dict(width=0)),
        ('pfn', dict(dropout=1)),
        ('pfn', dict(bs=0)),
        ('pfn', dict(wd=-1)),
        ('gcn', dict(hidden=30_000)),
        ('nae', dict(epochs=10**19)),
        ('nae', dict(temperature=0)),
        ('dirichlet_vae', dict(alpha=[1.0, 0.0])),
        ('conv_ae', dict(begin=1)),
        ('conv_ae', dict(channels=[])),
        ('dense_ae', dict(only=2)),
        ('pca', dict(n_components=0)),
        ('gcn', dict(resize=10**5)),
        ('gcn', dict(k=0)),
    ],
)
def test_numbers_without_sense_are_refused(name, bad):
    with pytest.raises(ConfigError, match='is out of range|is empty|too many items'):
        get_recipe(name).check(bad)


def test_defaults_are_within_the_ranges():
    for name in recipes().index:
        r = get_recipe(name)
        for k, v in r.defaults.items():
            assert k not in RANGES or r.limits(k) is not None, (name, k)


def test_settings_by_hand_are_checked_too():
    with pytest.raises(UnknownSetting, match=r'hiden \(did you mean hidden\?\)'):
        get_recipe('sage').func(jets(25, 25), hiden=3)
    with pytest.raises(TypeError):
        get_recipe('isolation_forest').func(n_estimator=3)
    with pytest.raises(ValueError, match='out of range'):
        get_recipe('isolation_forest').func(n_estimators=0)
    assert kinds(jets(25, 25), width=np.int64(4)).made_by['settings'] == dict(width=4)
    with pytest.raises(LookupError, match='import the module'):
        get_recipe('my_own_recipe')


@pytest.mark.parametrize(
    'bad,why',
    [
        (dict(epochs=10**19), '1 to 100,000'),
        (dict(lr_max=1e39), 'lr_max of train is out of range'),
        (dict(hiden=3), r'did you mean hidden\?'),
    ],
)
def test_trainings_that_never_end_or_diverge_at_once(bad, why, tmp_path):
    with pytest.raises(ConfigError, match=why):
        train('sage', jets(25, 25), tmp_path / 'run', **bad)
    assert not (tmp_path / 'run').exists()


def test_labels_are_looked_at_before_training(tmp_path):
    with pytest.raises(DataError, match='no labels.*y or signal'):
        train('pfn', jets(25, 25, y=False), tmp_path / 'run')
    with pytest.raises(DataError, match='of one.*16 of class 1'):
        train('pfn', jets(25, 25, y=np.ones(24)), tmp_path / 'run')
    with pytest.raises(DataError, match='only=None'):
        train('dense_ae', jets(25, 25, y=False), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_three_signal_jets_are_few_and_enough(tmp_path):
    y = np.arange(60) < 3
    with pytest.warns(UserWarning, match='Very few training jets of a class'):
        run = train('pfn_quick', jets(10, 10, n=60, y=y), tmp_path / 'run', epochs=1, bs=16, progress=False)
    assert run.complete and np.isfinite(run.history.valid_loss).all()


MINE = """
from jetbook.train.recipes import recipe
from jetbook.train.training import toy_learner

@recipe(task='classify', lr_max=.05, epochs=1)
def my_own_tagger(store, split=None, *, width=4):
    "A recipe in a user's file"
    return toy_learner(store, split, width=width)
"""


def test_a_recipe_from_a_file_and_its_run_in_another_process(tmp_path):
    (tmp_path / 'my_recipes.py').write_text(MINE)
    toy_jets(60, 'wqcd').save(tmp_path / 'toys.jets.h5')

    def jetbook(line):
        command = [sys.executable, '-W', 'ignore', '-m', 'jetbook.cli', *line.split()]
        env = {**os.environ, 'PYTHONPATH': str(Path(__file__).parent.parent)}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)

    out = jetbook('train my_own_tagger toys.jets.h5 -o run -q --import my_recipes.py')
    assert out.returncode == 0, out.stderr
    out = jetbook('evaluate run toys.jets.h5')
    assert out.returncode != 0 and 'import my_recipes first' in out.stderr and '--import my_recipes.py' in out.stderr
    out = jetbook('evaluate run toys.jets.h5 --import my_recipes.py --json')
    assert out.returncode == 0 and 'auc' in out.stdout, out.stderr


def test_files_that_cannot_be_imported(tmp_path):
    with pytest.raises(ImportError, match='No such file'):
        import_recipes(tmp_path / 'none.py')
    (tmp_path / 'broken_recipes.py').write_text('1/0')
    with pytest.raises(ConfigError, match='ZeroDivisionError'):
        import_recipes(tmp_path / 'broken_recipes.py')
    with pytest.raises(ConfigError, match='ModuleNotFoundError'):
        import_recipes('no_such_module_of_recipes')
    (tmp_path / 'json.py').write_text('')
    with pytest.raises(ConfigError, match='already imported'):
        import_recipes(tmp_path / 'json.py')


def test_a_run_starts_from_the_weights_of_another(tmp_path):
    old, new = toy_jets(80, 'wqcd'), toy_jets(100, 'wqcd', seed=1)
    args = dict(epochs=1, progress=False, bs=16)
    first = train('pfn_quick', old, tmp_path / 'first', **args)
    tuned = train('pfn_quick', new, tmp_path / 'tuned', lr_max=1e-9, start=first, **args)
    a, b = (load_bundle(r.path)[1] for r in (first, tuned))
    scales = {k for k in a if k.startswith('scale.')}
    assert scales and all(a[k].equal(b[k]) for k in scales)
    moving = {k for k in a if 'running' in k or 'num_batches' in k}
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in set(a) - moving)
    assert tuned.config['start']['run'] == 'first'
    assert train('pfn_quick', new, tmp_path / 'tuned', lr_max=1e-9, start=first.path, **args).complete
    with pytest.raises(ConfigError, match='another run.*start=first'):
        train('pfn_quick', new, tmp_path / 'tuned', lr_max=1e-9, **args)
    with pytest.raises(DataError, match='weights of another network'):
        train('pfn_quick', new, tmp_path / 'wider', width=8, start=first, **args)
    with pytest.raises(DataError, match='weights of another network'):
        train('conv_ae', new, tmp_path / 'wider', start=first, epochs=1)
    with pytest.raises(JetbookError, match='config.json'):
        train('pfn_quick', new, tmp_path / 'wider', start=tmp_path / 'none', **args)
    assert not (tmp_path / 'wider' / 'config.json').exists()
