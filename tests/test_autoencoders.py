"Edge cases of the autoencoders: refused settings, other image sizes, empty jets, weights after loading"
import numpy as np
import pytest
import torch
from torch import nn
from jetbook.ae.conv import conv_ae, ConvAE, mean_image, reconstruct, set_start
from jetbook.ae.dense import (
    CellAE, cell_ae, dense_ae, DenseAE, error_table, image_in_out, in_out, mass_pt_errors, momentum_grid,
    tilt, unrolled_ae,
)
from jetbook.ae.sparse import (
    hurdle_nll, HurdleLoss, PatchDecoder, PatchEncoder, patch_features, PatchGrid, Sketch, sparse_ae,
    SparseAE, UnrolledDecoder,
)
from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, toy_jets
from jetbook.data.transforms import MinMax
from jetbook.train.runs import train


def close(a, b, atol):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.fixture(scope='module')
def qg():
    return toy_jets(100)


@pytest.fixture(scope='module')
def wqcd():
    return sample('wqcd').select(range(400))


@pytest.fixture(scope='module')
def images(qg):
    return MinMax()(qg.images(range(16)))


@pytest.fixture(scope='module')
def grid():
    return PatchGrid(125, (1, 1, 5))


# conv_ae

@pytest.mark.parametrize('channels,side', [(1, 125), (3, 125), (1, 25), (2, 128)])
def test_conv_ae_keeps_the_shape(channels, side):
    x = torch.rand(2, channels, side, side)
    assert ConvAE(channels, side)(x).shape == x.shape


def test_conv_ae_refuses_large_images():
    with pytest.raises(ConfigError, match='up to 128'):
        ConvAE(1, 200)


def test_conv_ae_in_bfloat16_is_close(images):
    torch.manual_seed(0)
    full = ConvAE()
    half = ConvAE(bf16=True)
    half.load_state_dict(full.state_dict())
    a, b = full(images[:4, :1]), half(images[:4, :1])
    assert b.dtype == torch.float32 and not a.equal(b)
    close(a, b, 5e-3)


@pytest.mark.parametrize('start', [0, 1, -0.1])
def test_start_is_a_pixel_value(start):
    with pytest.raises(ConfigError, match='between 0 and 1'):
        set_start(ConvAE(), start)


def test_conv_ae_recipe(qg, tmp_path):
    assert conv_ae(qg).model.encoder[0].in_channels == 3
    assert isinstance(conv_ae(qg, split(qg), loss='mse').loss_func, nn.MSELoss)
    with pytest.raises(ConfigError, match="'weighted' or 'mse'"):
        train('conv_ae', qg, tmp_path / 'x', loss='mae')


def test_mean_image_of_one_channel_is_that_of_all(images):
    assert mean_image(images[:, 1:2], 100.0).equal(mean_image(images, 100.0)[:, 1:2])


def test_reconstruct_gives_all_jets_by_default(qg):
    target, pred = reconstruct(conv_ae(qg, channels=['HCAL']), qg)
    assert target.shape == pred.shape == (len(qg), 1, 125, 125)


# dense_ae, cell_ae, unrolled_ae

def test_dense_ae_layers():
    assert sum(isinstance(l, nn.LeakyReLU) for l in DenseAE((625, 300, 100, 300, 625)).modules()) == 3
    with pytest.raises(ConfigError, match='no autoencoder'):
        DenseAE((625, 200, 625, 625))


def test_dense_ae_recipe_has_the_settings_of_r6(wqcd, qg, tmp_path):
    learn = dense_ae(wqcd)
    assert learn.dls.train.bs == 256
    assert (wqcd.columns['signal'][learn.dls.train.idx] == 0).all()
    assert (wqcd.columns['signal'][learn.dls.valid.idx] == 0).all()
    weights = [tuple(p.shape) for p in dense_ae(wqcd, bottleneck=625).model.parameters()][::2]
    assert weights == [(625, 625)] * 4
    run = train('dense_ae', wqcd, tmp_path / 'run', bs=64, epochs=1, progress=False)
    assert run.config['settings'] == dict(bottleneck=200, only=0, wd=1e-6, bs=64)
    with pytest.raises(ConfigError, match='625 or 200 or 100'):
        train('dense_ae', wqcd, tmp_path / 'x', bottleneck=50)
    with pytest.raises(ConfigError, match='dense_ae takes other images'):
        dense_ae(qg)


def test_a_code_that_loses_nothing_has_no_errors(wqcd):
    idx = np.arange(100)
    df = image_in_out(wqcd, idx, wqcd.images(idx))
    assert all(v.value == v.lo == v.hi == 0 for v in mass_pt_errors(df).values())
    t = error_table({'same': df})
    assert list(t) == ['signal m', 'signal pT', 'background m', 'background pT', 'background MSE']
    assert t.loc['same', 'signal m'].startswith('0 ')


def test_in_out_needs_masses(wqcd):
    class Scores:
        def scores(self, part):
            return dict(jet=np.arange(3), mse=np.ones(3))

    with pytest.raises(ConfigError, match='no masses'):
        in_out(Scores(), wqcd)


@pytest.mark.parametrize('bottleneck', [0, 90])
def test_cell_ae_needs_whole_cells(bottleneck):
    with pytest.raises(ConfigError, match='multiple of 25'):
        CellAE(bottleneck)


def test_cell_ae_needs_25_pixels(wqcd):
    small = wqcd._replace(height=5, width=5)
    with pytest.raises(ConfigError, match='25x25 pixels, 1 channel'):
        cell_ae(small)


def test_tilt_leaves_a_jet_of_one_pixel(wqcd):
    grid = momentum_grid(25, wqcd.cell)
    x = wqcd.images(range(2)).flatten(1)
    one = torch.zeros(2, 625)
    one[0, 300] = 50.0
    out = tilt(one, x.double() @ grid, grid)
    assert out.isfinite().all()
    assert out[1].equal(one[1])


@pytest.mark.parametrize('bottleneck,momentum', [(4, True), (0, False), (626, False)])
def test_unrolled_ae_refuses_other_codes(wqcd, bottleneck, momentum):
    with pytest.raises(ConfigError, match='too small or too large|out of range'):
        unrolled_ae(wqcd, bottleneck=bottleneck, momentum=momentum)


def test_unrolled_ae_with_fewer_jets_than_axes(wqcd):
    net = unrolled_ae(wqcd.select(range(60)), bottleneck=100).model.eval()
    x = wqcd.images(range(5))
    assert net.encode(x).shape == (5, 100) and net(x).shape == x.shape
    assert (net(x) >= 0).all()


# sparse_ae

@pytest.mark.parametrize('cells', [1, 5, 8, 25])
def test_patches_lose_nothing(images, cells):
    g = PatchGrid(125, (1, 1, 5), cells)
    assert g.paste(g.cut(images)).equal(images)


def test_patches_of_25_pixels(wqcd):
    g = PatchGrid(25, (1,), 5)
    x = wqcd.images(range(8))
    assert g.paste(g.cut(x)).equal(x)


def test_patches_reach_the_corners(grid):
    x = torch.zeros(1, 3, 125, 125)
    x[0, 0, 124, 0] = x[0, 1, 0, 124] = 1
    x[0, 2, 120:, 120:] = 0.5
    assert grid.paste(grid.cut(x)).equal(x)
    assert grid.n == 528


def test_patches_need_cells_that_fit():
    with pytest.raises(ConfigError, match='1 to 25'):
        PatchGrid(125, (1, 5), 26)


def test_hurdle_gradients_are_finite():
    torch.manual_seed(0)
    logits = torch.randn(50, requires_grad=True)
    mean = torch.randn(50, requires_grad=True)
    target = (torch.rand(50) - 0.5).clamp(min=0)
    hurdle_nll(logits, mean, target, torch.rand(50) + 0.1).sum().backward()
    assert logits.grad.isfinite().all()
    assert (mean.grad[target == 0] == 0).all() and (mean.grad[target > 0] != 0).all()


def _pairs(grid):
    torch.manual_seed(0)
    sketch = Sketch(grid)
    return [(PatchEncoder(grid), PatchDecoder(grid), -3), (sketch, UnrolledDecoder(grid, sketch), -4)]


@pytest.mark.parametrize('which', [0, 1], ids=['perceptrons', 'unrolled'])
@torch.no_grad()
def test_encoder_and_decoder_of_patches(grid, images, which):
    enc, dec, odds = _pairs(grid)[which]
    p = grid.cut(images)
    where = p.amax(-1) > 0
    z = enc(p)
    assert z.ne(0).any(1).equal(where)
    for every, some in zip(dec(z), dec(z, where)):
        close(every[where], some, 1e-4)
    assert abs(dec(z, where)[0].mean() - odds) < 0.5
    close(enc(p[3:4].clone()), z[3:4], 1e-5)
    assert enc(p * 0).equal(torch.zeros_like(z))
    assert dec(z * 0, where & False)[0].shape == (0, grid.n)


def test_sketch_measures_the_features(grid, images):
    sketch = Sketch(grid)
    p = grid.cut(images)
    where = p.amax(-1) > 0
    close(sketch.measure(patch_features(p[where])), sketch(p).permute(0, 2, 3, 1)[where], 1e-5)


def test_hurdle_loss_of_an_exact_network_is_that_of_its_floor(grid, images):
    loss = HurdleLoss(grid)
    p = grid.cut(images)
    where = p.amax(-1) > 0
    t = p[where]
    exact = t.clamp_min(1e-30).log()
    sure = torch.where(t > 0, 20.0, -20.0)
    close(loss.sigma(exact + 0.3 * (-1.0) ** torch.arange(grid.n), t), torch.full((grid.n,), 0.3), 1e-3)
    lit = (t > 0).sum() / len(images)
    nll = loss((None, sure, exact, where), images) / lit
    assert abs(nll.item() - np.log(0.01) - 0.5 * np.log(2 * np.pi)) < 1e-3
    nothing = torch.zeros(0, grid.n)
    assert loss((None, nothing, nothing, where & False), images * 0).item() == 0


def test_sparse_ae_gives_images_of_towers(images):
    model = SparseAE()
    with torch.no_grad():
        model.decoder.guess.rest[-1].bias[: model.grid.n] = 30.0
    q = model(images)[0]
    assert model.grid.paste(model.grid.cut(q)).equal(q)
    assert 0 <= q.min() and q.max() <= 1 and (q > 0).float().mean() > 0.1


def test_sparse_ae_of_one_channel(qg):
    learn = sparse_ae(qg, channels=['HCAL'], steps=0)
    assert learn.model.grid.up == (5,)
    assert isinstance(learn.model.encoder, PatchEncoder)


def test_sparse_ae_has_one_matrix_after_loading(qg, images, tmp_path):
    run = train('sparse_ae', qg, tmp_path / 'run', epochs=1, width=32, progress=False)
    model = run.learner().model
    with torch.no_grad():
        assert model.decode(model.encode(images)).equal(model(images)[0])
    assert model.encoder.weight.data_ptr() == model.decoder.sketch.weight.data_ptr()


@pytest.mark.parametrize('prepare', ['gamma', 'log', 'equalise', 'jet'])
def test_preparations_are_kept_with_a_run(prepare, tmp_path):
    toy = toy_jets(80)
    kw = dict(epochs=1, channels=['HCAL'], prepare=prepare, bs=32, progress=False)
    run = train('conv_ae', toy, tmp_path / 'run', **kw)
    x, y = reconstruct(run, toy, range(4))
    mine, theirs = (l.dls.train for l in (run.learner(toy), run.learner()))
    assert 0 <= x.min() and x.max() <= 1.0001 and np.isfinite(y).all()
    assert [type(f) for f in mine.tfms.fs] == [type(f) for f in theirs.tfms.fs]
    a, b = (next(iter(l.dls.test_dl(toy, idx=range(8), bs=8)))[0] for l in (run.learner(toy), run.learner()))
    torch.testing.assert_close(a, b)
