"Fits and scans that touch nothing of the user's, resume after a kill at any point, and believe no bundle"
import os
import re
import shutil
import signal
import warnings
import numpy as np
import pytest
import torch
from conftest import child, tamper
from jetbook.anomaly import methods
from jetbook.anomaly.methods import anomaly_score, fit_background, load_method, MeanImage, save_method, scan
from jetbook.data.paths import InUse, locked, OutputError
from jetbook.data.store import ConfigError, DataError, JetStore, toy_jets
from jetbook.train.runs import evaluate, RUN_FILES, train
from jetbook.train.training import load_tensors, save_tensors

AE = dict(epochs=1)


@pytest.fixture(scope='module')
def jets():
    return toy_jets(160, 'wqcd')


def everything(folder):
    "Names and contents below a folder"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


# what belongs to the user


@pytest.mark.parametrize('name', ['thesis.tex', 'training/notes.txt', 'model.safetensors', 'run/config.json'])
def test_a_folder_of_somebody_else_is_refused(jets, tmp_path, name):
    file = tmp_path / 'mine' / name
    file.parent.mkdir(parents=True)
    file.write_text('two years of work')
    for call in (
        lambda: fit_background('mean_image', jets, out=tmp_path / 'mine'),
        lambda: save_method(MeanImage().fit(jets), tmp_path / 'mine'),
    ):
        with pytest.raises(OutputError, match='not of jetbook'):
            call()
    assert everything(tmp_path / 'mine') == {name: b'two years of work'}


def test_a_config_of_something_else_is_refused(jets, tmp_path):
    (tmp_path / 'config.json').write_text('{"colour": "blue"}')
    with pytest.raises(ConfigError, match='something else'):
        fit_background('mean_image', jets, out=tmp_path)
    assert everything(tmp_path) == {'config.json': b'{"colour": "blue"}'}


@pytest.mark.parametrize('name', ['', '-', 'link', 'file'])
def test_what_is_no_folder_is_refused(jets, tmp_path, name):
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'other').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'other')
    with pytest.raises(OutputError):
        fit_background('mean_image', jets, out=tmp_path / name if name not in ('', '-') else name)
    assert everything(tmp_path)['file'] == b'mine' and not [*(tmp_path / 'other').iterdir()]


def test_files_of_the_user_in_a_fits_folder_stay(jets, tmp_path):
    def stop(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(methods, 'calibrate', stop)
        fit_background('ae', jets, out=tmp_path / 'fit', **AE)
    (run,) = (p for p in (tmp_path / 'fit/training').iterdir() if p.is_dir())
    mine = [tmp_path / 'fit/notes.txt', tmp_path / 'fit/training/notes.txt', run / 'notes.txt']
    for p in mine:
        p.write_text('mine')
    fit_background('ae', jets, out=tmp_path / 'fit', **AE)
    assert [p.read_text() for p in mine] == ['mine'] * 3
    assert [p.name for p in run.iterdir()] == ['notes.txt']


def test_training_in_a_linked_folder_is_refused(jets, tmp_path):
    fit_background('ae', jets, out=tmp_path / 'fit', **AE)
    (tmp_path / 'fit/model.safetensors').unlink()
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'fit/training').symlink_to(tmp_path / 'mine')
    with pytest.raises(OutputError, match='is a link'):
        fit_background('ae', jets, out=tmp_path / 'fit', **AE)
    assert not [*(tmp_path / 'mine').iterdir()]


def test_a_fit_that_fails_leaves_nothing(jets, tmp_path):
    for name, text in (('cwola', 'two samples'), ('knn_observables', 'neighbours')):
        few = jets.select(range(40))
        with pytest.raises(ConfigError, match=text):
            fit_background(name, few, out=tmp_path / name)
        assert not (tmp_path / name).exists()
    with pytest.raises(DataError, match='held out'):
        fit_background('mean_image', jets, valid=0, out=tmp_path / 'x')


# two at once, and other fits


def test_two_fits_do_not_share_a_folder(jets, tmp_path):
    with locked(tmp_path / 'fit') as folder:
        for call in (
            lambda: fit_background('mean_image', jets, out=folder),
            lambda: save_method(MeanImage().fit(jets), folder),
        ):
            with pytest.raises(InUse, match='in use'):
                call()
        assert [p.name for p in folder.iterdir()] == ['.jetbook.lock']


def test_another_background_is_another_fit(jets, tmp_path):
    fit_background('mean_image', jets, 'QCD', out=tmp_path)
    for store, background, kwargs, text in (
        (jets, 'W', {}, 'background=QCD'),
        (toy_jets(170, 'wqcd'), 'QCD', {}, 'store='),
        (jets, 'QCD', dict(valid=0.2), 'valid=0.1'),
        (jets, 'QCD', dict(power=0.5), 'power=1.0'),
    ):
        with pytest.raises(ConfigError, match=text):
            fit_background('mean_image', store, background, out=tmp_path, **kwargs)
    assert load_method(tmp_path).background_['background'] == 'QCD'


# kills


def killed_at(n, f, *args, **kwargs):
    "Call `f` and die at the n-th file that is put in its place"
    done = [0]
    replace = os.replace

    def dying(*a):
        done[0] += 1
        if done[0] == n:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*a)

    os.replace = dying
    f(*args, **kwargs)


@pytest.mark.skipif(os.name == 'nt', reason='SIGKILL')
@pytest.mark.parametrize('name, kwargs', [('mean_image', {}), ('mahalanobis_latent', AE)])
def test_killed_at_every_file_it_still_arrives(jets, tmp_path, name, kwargs):
    whole = fit_background(name, jets, 'QCD', out=tmp_path / 'whole', **kwargs)
    kills = 0
    while (end := child(killed_at, kills + 1, fit_background, name, jets, 'QCD', out=tmp_path / 'fit', **kwargs)).signal:
        assert end.signal == signal.SIGKILL and kills < 40
        if (tmp_path / 'fit/config.json').exists():
            with pytest.raises(DataError, match='model.safetensors'):
                load_method(tmp_path / 'fit')
        kills += 1
    assert end.error is None, end.error[2]
    assert kills >= (2 if kwargs == {} else 4)
    whole_files, files = everything(tmp_path / 'whole'), everything(tmp_path / 'fit')
    assert set(files) == set(whole_files)
    for k in ('config.json', 'model.safetensors'):
        assert files[k] == whole_files[k]
    np.testing.assert_array_equal(anomaly_score(load_method(tmp_path / 'fit'), jets), anomaly_score(whole, jets))


def test_trainings_left_by_a_kill_after_the_end_go(jets, tmp_path):
    def interrupted(folder):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(methods, '_remove_trainings', interrupted)
        fit_background('ae', jets, out=tmp_path, **AE)
    assert (tmp_path / 'training').exists() and (tmp_path / 'model.safetensors').exists()
    fit_background('ae', jets, out=tmp_path, **AE)
    assert not (tmp_path / 'training').exists()


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write everywhere')
def test_a_complete_fit_in_a_read_only_folder_is_loaded(jets, tmp_path):
    fit_background('mean_image', jets, out=tmp_path / 'fit')
    (tmp_path / 'fit').chmod(0o500)
    assert len(fit_background('mean_image', jets, out=tmp_path / 'fit').background_scores_) == 16


# bundles of strangers


@pytest.fixture(scope='module')
def fitted(jets, tmp_path_factory):
    folder = tmp_path_factory.mktemp('fitted')
    fit_background('mean_image', jets, out=folder / 'mean')
    fit_background('ae', jets, out=folder / 'ae', **AE)
    fit_background('ae', jets, out=folder / 'other', random_state=1, **AE)
    fit_background('pca', jets, n_components=5, out=folder / 'pca')
    fit_background('surrogates', jets, trees=2, out=folder / 'surrogates')
    return folder


def change_arrays(folder, **change):
    "Replace tensors of a bundle, with sound checksums; None removes one"
    arrays, meta = load_tensors(folder / 'model.safetensors')
    arrays = {k: v for k, v in {**arrays, **change}.items() if v is not None}
    save_tensors(folder / 'model.safetensors', arrays, meta)


@pytest.mark.parametrize('name, change', [
    ('mean', {'background_scores': None}),
    ('mean', {'background_scores': torch.zeros(0)}),
    ('mean', {'background_scores': torch.tensor([2.0, 1.0])}),
    ('mean', {'background_scores': torch.tensor([1.0, float('inf')])}),
    ('mean', {'state/mean': torch.zeros(3)}),
    ('mean', {'state/mean': torch.zeros(625, dtype=torch.int64)}),
    ('mean', {'state/mean': None}),
    ('mean', {'state/more': torch.zeros(3)}),
    ('mean', {'more': torch.zeros(3)}),
    ('ae', {'run': None}),
    ('ae', {'run': torch.tensor([1, 2])}),
    ('surrogates', {'state/real': torch.zeros(0, 6)}),
    ('surrogates', {'state/real': torch.zeros(3, dtype=torch.complex64)}),
    ('surrogates', {'state/corrupted': torch.zeros(10, 3, 9)}),
    ('surrogates', {'state/aside': torch.zeros(())}),
], ids=lambda v: v if isinstance(v, str) else ' '.join(f'{k} {tuple(t.shape) if t is not None else ""}' for k, t in v.items()))
def test_arrays_that_lie(fitted, tmp_path, name, change):
    shutil.copytree(fitted / name, tmp_path / 'x')
    change_arrays(tmp_path / 'x', **change)
    with pytest.raises(DataError), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        load_method(tmp_path / 'x')


@pytest.mark.parametrize('name, change', [
    ('mean', dict(background=dict(n='many'))),
    ('mean', dict(background=dict(n=-1))),
    ('ae', dict(settings=dict(bottleneck=7))),
    ('pca', dict(settings=dict(n_components=900))),
    ('pca', dict(recipe='ae_kernel', settings={})),
])
def test_settings_that_lie(fitted, tmp_path, name, change):
    shutil.copytree(fitted / name, tmp_path / 'x')
    tamper(tmp_path / 'x', **change)
    with pytest.raises((ConfigError, DataError)):
        load_method(tmp_path / 'x')


def test_a_network_of_another_fit_is_refused(fitted, tmp_path):
    shutil.copytree(fitted / 'ae', tmp_path / 'x')
    shutil.rmtree(tmp_path / 'x/run')
    with pytest.raises(DataError, match='model.safetensors'):
        load_method(tmp_path / 'x')
    shutil.copytree(fitted / 'other/run', tmp_path / 'x/run')
    with pytest.raises(DataError, match='not the one'):
        load_method(tmp_path / 'x')


def test_a_flipped_bit_is_found(fitted, tmp_path):
    shutil.copytree(fitted / 'mean', tmp_path / 'x')
    file = tmp_path / 'x/model.safetensors'
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match='damaged'):
        load_method(tmp_path / 'x')


@pytest.mark.skipif(os.name == 'nt', reason='resource')
def test_empty_rows_take_no_memory(fitted, tmp_path):
    shutil.copytree(fitted / 'pca', tmp_path / 'x')
    a = load_tensors(tmp_path / 'x/model.safetensors')[0]
    n = 3_000_000  # 15 GB as dense rows
    indptr = torch.cat([a['state/indptr'], a['state/indptr'][-1:].expand(n)])
    change_arrays(tmp_path / 'x', **{'state/indptr': indptr})
    end = child(load_method, tmp_path / 'x', mb=2000)
    assert end.error[0] == 'DataError' and 'lit towers' in end.error[1] and end.peak < 600


# scans


def test_a_scan_does_not_replace_its_source(jets, tmp_path):
    file = jets.save(tmp_path / 'a.jets.h5')
    method = MeanImage().fit(jets)
    before = file.read_bytes()
    with pytest.raises(OutputError, match='being read'):
        scan(method, file, file)
    (tmp_path / 'b.png').write_bytes(b'a picture of mine')
    with pytest.raises(OutputError, match='already exists'):
        scan(method, file, tmp_path / 'b.jets.h5', overwrite=False)
    with pytest.raises(ConfigError, match='one file'):
        scan(method, file, tmp_path / 'c', picture=tmp_path / 'c')
    assert file.read_bytes() == before and (tmp_path / 'b.png').read_bytes() == b'a picture of mine'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.jets.h5', 'b.png']


@pytest.mark.parametrize('top', [0, -1, 101, 100_000])
def test_a_picture_of_none_or_all_is_refused_first(jets, tmp_path, top):
    with pytest.raises(ConfigError, match='1 to 100'):
        scan(tmp_path / 'nothing', jets, tmp_path / 'x.jets.h5', top=top)
    assert not [*tmp_path.iterdir()]


def test_a_picture_that_fails_costs_no_scores(jets, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError('no fonts')

    monkeypatch.setattr(methods, 'show_most_anomalous', broken)
    with pytest.warns(UserWarning, match='no fonts'):
        df = scan(MeanImage().fit(jets), jets, tmp_path / 'x.jets.h5')
    assert df.attrs['picture'] is None and len(df) == 160
    assert 'anomaly_mean_image' in JetStore(tmp_path / 'x.jets.h5').columns


def test_a_scan_of_nothing(jets):
    with pytest.raises(DataError, match='no jets'):
        scan(MeanImage().fit(jets), jets.select([]))


def test_a_run_scores_jets_of_its_own_kind(jets, tmp_path):
    train('dense_ae', jets, tmp_path / 'ae', epochs=1, progress=False)
    one = JetStore.from_entries(dict(pT=([0, 1, 2], [0, 5], [1.0, 2.0])), 32, 32)
    with pytest.raises(DataError, match='another size'):
        scan(tmp_path / 'ae', one)


def test_all_files_of_a_run_are_known(jets, tmp_path):
    run = train('dense_ae', jets, tmp_path / 'ae', epochs=1, progress=False)
    evaluate(run, jets, 'valid')
    assert not [p.name for p in run.path.iterdir() if not re.fullmatch(RUN_FILES, p.name)]
