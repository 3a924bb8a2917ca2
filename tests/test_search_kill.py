"Comparisons of methods and of recipes: killed and resumed, refused where they would mix"
import os
import signal
import numpy as np
import pytest
import torch
from conftest import child
from test_anomaly_trust import everything, killed_at
from jetbook.anomaly.density import gmm_latent
from jetbook.anomaly.methods import MeanImage, Observable
from jetbook.anomaly.search import compare_methods
from jetbook.data.paths import InUse, locked, OutputError
from jetbook.data.store import ConfigError, DataError, toy_jets
from jetbook.taggers.compare import compare_recipes
from jetbook.train.training import load_tensors, save_tensors

FEW = {'lit pixels': Observable('multiplicity'), 'mean/jet': MeanImage()}
NETWORK = {'latent': gmm_latent(epochs=1, n_components=2)}


@pytest.fixture(scope='module')
def jets():
    return toy_jets(300, 'wqcd')


def search(store, out, methods=FEW, seeds=(0,), background='QCD', **kwargs):
    return compare_methods(store, background, out, methods, seeds, 'valid', progress=False, **kwargs)


def kill_until_done(f, *args, step=1, **kwargs):
    "Kill a call at a later file each time until it comes to its end; returns the number of kills"
    for kills in range(30):
        end = child(killed_at, 1 + kills * step, f, *args, **kwargs)
        if end.signal is None:
            assert end.error is None, end.error[2]
            return kills
        assert end.signal == signal.SIGKILL
    raise AssertionError('it never came to its end')


def names(folder):
    "Files below a folder, without the pictures, which come last and are drawn once"
    return {k for k in everything(folder) if not k.endswith('.png')}


@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL')
@pytest.mark.parametrize('methods, seeds', [(FEW, (0, 1)), (NETWORK, (0,))])
def test_a_search_that_is_killed_resumes(jets, tmp_path, methods, seeds):
    whole = search(jets, tmp_path / 'whole', methods, seeds)
    assert kill_until_done(search, jets, tmp_path / 'out', methods, seeds, step=1 + (methods is NETWORK)) >= 3
    found = search(jets, tmp_path / 'out', methods, seeds)
    for k in whole:
        for a, b in zip(whole[k], found[k], strict=True):
            np.testing.assert_array_equal(a['score'], b['score'])
            np.testing.assert_array_equal(a['aside'], b['aside'])
    a, b = everything(tmp_path / 'whole'), everything(tmp_path / 'out')
    assert names(tmp_path / 'whole') == names(tmp_path / 'out')
    for k in a:
        if k.endswith(('model.safetensors', 'search.json')) or 'scores' in k:
            assert a[k] == b[k], k


@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL')
def test_a_comparison_of_recipes_that_is_killed_resumes(jets, tmp_path):
    def compare(out):
        settings = dict(epochs=1, n_train=100)
        return compare_recipes(jets, ['pfn_quick'], out, (0,), 'valid', 0.2, 0.2, **settings)

    (whole,) = compare(tmp_path / 'whole')
    assert kill_until_done(compare, tmp_path / 'out', step=2) >= 3
    (found,) = compare(tmp_path / 'out')
    np.testing.assert_array_equal(found.scores('valid')['score'], whole.scores('valid')['score'])
    assert found.metrics['valid'] == whole.metrics['valid']
    assert names(tmp_path / 'out') == names(tmp_path / 'whole')


def test_a_finished_search_is_read_and_nothing_is_written(jets, tmp_path):
    search(jets, tmp_path / 'out')
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*') if p.is_file() and 'lock' not in p.name}
    with locked(tmp_path / 'out'):  # nor is a lock needed
        search(jets, tmp_path / 'out')
        with pytest.raises(InUse, match='in use'):
            search(jets, tmp_path / 'out', seeds=(0, 1))
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_another_search_is_refused(jets, tmp_path):
    search(jets, tmp_path / 'out')
    before = everything(tmp_path / 'out')
    with pytest.raises(ConfigError, match='background=QCD'):
        search(jets, tmp_path / 'out', background='W')
    with pytest.raises(ConfigError, match='store='):
        search(toy_jets(310, 'wqcd'), tmp_path / 'out')
    with pytest.raises(ConfigError, match='other settings'):
        search(jets, tmp_path / 'out', {'lit pixels': Observable('girth')})
    assert everything(tmp_path / 'out') == before
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.tex').touch()
    with pytest.raises(OutputError, match='not of jetbook'):
        search(jets, tmp_path / 'mine')
    assert [p.name for p in (tmp_path / 'mine').iterdir()] == ['thesis.tex']


def test_a_search_of_nothing_is_refused_first(jets, tmp_path):
    for kwargs, text in (
        (dict(methods={}), '0 methods'),
        (dict(seeds=()), '0 seeds'),
        (dict(n_train=5), 'at least 20'),
        (dict(background='top'), 'QCD or W'),
    ):
        with pytest.raises(ConfigError, match=text):
            search(jets, tmp_path / 'out', **kwargs)
    with pytest.raises(ConfigError, match="'valid' or 'test'"):
        compare_methods(jets, 'QCD', tmp_path / 'out', FEW, part='train')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('change', [
    dict(score=torch.tensor([float('nan')])),
    dict(score=torch.zeros(2, 2, dtype=torch.float64)),
    dict(y=torch.zeros(3)),
    dict(more=torch.zeros(3)),
])
def test_scores_that_are_none(jets, tmp_path, change):
    search(jets, tmp_path)
    file = tmp_path / 'lit_pixels-0/scores-valid.safetensors'
    arrays, meta = load_tensors(file)
    save_tensors(file, {**arrays, **change}, meta)
    with pytest.raises(DataError, match='holds no scores'):
        search(jets, tmp_path)
