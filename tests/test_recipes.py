"The register of recipes: names, settings, entry points of other packages, and what listing costs"
import os, subprocess, sys, typing
from pathlib import Path

import pytest

from jetbook.data.store import ConfigError
from jetbook.train.recipes import Recipe, get_recipe, recipe, recipes
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
