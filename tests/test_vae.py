"Edge cases of the variational autoencoders: refused settings, a killed training, empty rings, what can't be drawn"
import warnings
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from jetbook.ae.latent import independent_jets, judge_samples, sample_prior, sample_table, wasserstein
from jetbook.ae.vae import (
    active_units, ELBO, kl_share, KLAnneal, latent_kl, latent_map, latents, reparameterise, sparse_vae,
    SparseVAE, SqrtLog, VAE, vae,
)
from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, DataError, toy_jets
from jetbook.data.transforms import Flip
from jetbook.train.runs import evaluate, train
from jetbook.train.training import toy_learner

SHORT = dict(epochs=2, lr_max=1e-3, latent=4, warmup=0.5, bs=32, progress=False)


def close(a, b, atol, rtol=0):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.fixture(scope='module')
def toy():
    return toy_jets(200, 'wqcd')


@pytest.fixture(scope='module')
def qg():
    return sample('qg').select(range(100))


@pytest.fixture(scope='module')
def r3(toy, tmp_path_factory):
    return train('vae', toy, tmp_path_factory.mktemp('vae') / 'run', **SHORT)


@pytest.fixture(scope='module')
def sparse(toy, tmp_path_factory):
    path = tmp_path_factory.mktemp('sparse') / 'run'
    return train('sparse_vae', toy, path, epochs=1, latent=4, widths=[8, 8], progress=False)


# clouds and their loss

def test_no_variance_means_no_noise():
    assert reparameterise(torch.ones(2, 2), torch.full((2, 2), -torch.inf)).equal(torch.ones(2, 2))


def test_kl_of_the_prior_is_zero_and_of_nothing_negative():
    assert latent_kl(torch.zeros(2, 3), torch.zeros(2, 3)).equal(torch.zeros(2, 3))
    torch.manual_seed(0)
    assert (latent_kl(*torch.randn(2, 50, 4)) >= 0).all()


@pytest.mark.parametrize('free_bits,gradient', [(0.2, 0.0), (0.1, 0.5)])
def test_free_bits_take_the_gradient_away(free_bits, gradient):
    x = torch.rand(8, 1, 5, 5)
    m = torch.full((8, 1), 0.5, requires_grad=True)
    ELBO(lambda p, t: p[0].sum() * 0, free_bits=free_bits)((x, m, torch.zeros(8, 1)), x).backward()
    assert abs(m.grad.sum().item() - gradient) < 1e-6


def test_elbo_refuses_negative_weights():
    with pytest.raises(ConfigError, match='beta cannot be negative'):
        ELBO(None, beta=-1.0)
    with pytest.raises(ConfigError, match='0 or more'):
        ELBO(None, free_bits=float('nan'))


def test_kl_share_without_warmup_and_out_of_range():
    assert kl_share(0.0, 0.0) == 1.0
    with pytest.raises(ConfigError, match='warmup in 0 to 1'):
        kl_share(0.0, 2.0)
    with pytest.raises(ConfigError, match='at least 1 cycle'):
        kl_share(0.0, 0.5, 0)


def test_kl_anneal_begins_anew_with_each_fit(toy):
    learn = vae(toy, latent=2, bs=32, beta=4.0, warmup=0.5)
    betas = []

    class Watch(Callback):
        order = 50

        def after_loss(self):
            if self.training:
                betas.append(self.loss_func.beta)

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=Watch())
        first = list(betas)
        learn.fit(1, cbs=Watch())
    assert learn.loss_func.beta == 4.0
    np.testing.assert_allclose(betas, first + first)
    np.testing.assert_allclose(first, [4 * kl_share(i / len(first), 0.5) for i in range(len(first))])


# R3

def test_vae_in_bfloat16_is_close():
    torch.manual_seed(0)
    x = torch.rand(4, 1, 32, 32)
    full = VAE(16, 1, 32).eval()
    half = VAE(16, 1, 32, bf16=True).eval()
    half.load_state_dict(full.state_dict())
    assert half(x)[0].dtype == torch.float32
    close(half(x)[0], full(x)[0], 0.02)
    assert full.predict(full.encode(x), *full.posterior(x))[0].equal(full(x)[0])


def test_vae_has_the_weights_of_r3():
    flat, latent = 16384, 64
    layers = ((3, 32), (32, 64), (64, 128), (128, 256), (256, 128), (128, 64), (64, 32))
    n = sum(i * o * 9 + 3 * o for i, o in layers) + 32 * 3 * 9 + 3  # the last has no BatchNorm
    n += 2 * (flat * latent + latent) + latent * flat + flat
    assert sum(p.numel() for p in VAE(latent).parameters()) == n


def test_vae_refuses_other_sizes():
    with pytest.raises(ConfigError, match='latent of 1 or more'):
        VAE(0)
    with pytest.raises(ConfigError, match='a multiple of 16'):
        VAE(8, 1, 125)


def test_active_units_warns_only_of_collapse():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        active_units(torch.randn(500, 4), torch.full((500, 4), -3.0))
    with pytest.warns(UserWarning, match='has collapsed: 0 of 4 latent dimensions'):
        units = active_units(torch.randn(500, 4) * 0.01, torch.zeros(500, 4))
    assert not units.active.any()
    with pytest.raises(DataError, match='at least 2 jets'):
        active_units(torch.zeros(1, 4), torch.zeros(1, 4))


def test_vae_recipe(toy, r3, tmp_path):
    h = r3.history
    assert h.train_loss.iloc[-1] < h.train_loss.iloc[0]
    learn = r3.learner()
    assert isinstance(learn.cbs[-1], KLAnneal)
    assert learn.model.encoder[0].in_channels == 1
    assert learn.dls.train.one_batch()[0].shape[-1] == 32
    loss = vae(toy, split(toy), latent=4, loss='gaussian', beta=2.0, free_bits=0.1).loss_func
    assert (loss.weight, loss.beta, loss.free_bits) == (1.0, 2.0, 0.1)
    with pytest.raises(ConfigError, match='beta of vae is out of range'):
        train('vae', toy, tmp_path / 'x', latent=4, beta=-1.0)


@pytest.mark.parametrize('setting', [dict(loss='mse'), dict(precision='fp16'), dict(latent=1.5), dict(warmup='no')])
def test_vae_refuses_settings(toy, tmp_path, setting):
    with pytest.raises(ConfigError, match=f'Setting {next(iter(setting))} of vae'):
        train('vae', toy, tmp_path / 'x', **setting)


def test_a_killed_vae_resumes_to_the_same_figures(toy, r3, tmp_path):
    class Kill(Callback):
        order = 90

        def after_epoch(self):
            if self.epoch == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train('vae', toy, tmp_path / 'killed', cbs=Kill(), **SHORT)
    names = ['train_loss', 'valid_loss', 'kl']
    again = train('vae', toy, tmp_path / 'killed', **SHORT).history
    np.testing.assert_allclose(again[names], r3.history[names], rtol=1e-5, atol=1e-3)


# SparseVAE

def test_sqrt_log_of_dark_images_and_floors():
    scale = SqrtLog([0.1, 0.2, 0.3])
    assert scale.decode(torch.zeros(1, 3, 5, 5)).equal(torch.zeros(1, 3, 5, 5))
    with pytest.raises(ConfigError, match='must be positive'):
        SqrtLog([0.0, 1.0])


@pytest.mark.parametrize('side,up,cells,channels', [(25, (1,), 5, 1), (32, (1, 1), 6, 2), (125, (1, 1, 5), 25, 3)])
def test_sparse_vae_keeps_the_shape(side, up, cells, channels):
    net = SparseVAE(side, up, cells, 4, (8, 8))
    x = torch.rand(2, channels, side, side)
    assert net.eval()(x)[0].shape == x.shape
    assert net.train()(x)[0] is None and len(net(x)) == 7


def test_sparse_vae_draws_by_seed(qg):
    torch.manual_seed(0)
    net = SparseVAE(latent=4, widths=(8, 8)).begin(qg).eval()
    z = torch.randn(3, 4)
    draw = lambda seed: net.draw(z, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        assert draw(1).equal(draw(1)) and not draw(1).equal(draw(2))
        o = net.likelihood(z)
        assert (o.sigma > 0).all()
        v = net.ring_totals(net.grid.cut(SqrtLog(net.floor).decode(net.decode(z))))
        want = (o.sums * net.ring_std + net.ring_mean).clamp_min(0) ** 5
    assert (v[v > 0] > 0.99 * want[v > 0]).all()  # never below, as values stop at the floor


def test_rings_lie_where_jets_are(qg):
    net = SparseVAE()
    totals = net.ring_totals(net.grid.cut(qg.images()))
    assert ((totals > 0).float().mean(0) > 0.5).all()


def test_sparse_vae_needs_a_latent_dimension():
    with pytest.raises(ConfigError, match='needs a latent dimension'):
        SparseVAE(latent=0)


def test_sparse_vae_mirrors_only_images_that_are_not_turned(toy):
    for store, n in ((toy, 0), (toy_jets(60), 1)):
        tfms = sparse_vae(store, latent=4, widths=[8, 8]).dls.train.tfms.fs
        assert sum(isinstance(t, Flip) for t in tfms) == n
    learn = sparse_vae(toy, flip=False, latent=4, widths=[8, 8])
    assert [type(t) for t in learn.dls.train.tfms.fs] == [SqrtLog]
    assert learn.model.shape == (8, 3, 3)


@pytest.mark.parametrize('setting', [dict(latent='many'), dict(flip=1), dict(precision='int8'), dict(widths=32)])
def test_sparse_vae_refuses_settings(toy, tmp_path, setting):
    with pytest.raises(ConfigError, match=f'Setting {next(iter(setting))} of sparse_vae'):
        train('sparse_vae', toy, tmp_path / 'x', **setting)


def test_scales_are_part_of_the_bundle(toy, sparse):
    floor = SqrtLog.from_store(toy.select(split(toy).train)).floor.flatten()
    close(sparse.learner().model.floor, floor, 1e-9)


def test_elbo_of_evaluate(toy, sparse):
    m = evaluate(sparse, toy, part='valid')
    assert abs(m['elbo'] + m['reconstruction'] + m['kl']) < 1e-3


# maps, walks and samples

def test_latent_map(toy, sparse):
    fig = latent_map(sparse.learner(), toy, range(60), colours=['jet_pt'], methods=['pca'])
    assert fig.axes[0].get_xlabel() == 'PCA 1'
    with pytest.raises(ConfigError, match="'pca' or 'tsne'"):
        latent_map(sparse, toy, range(60), methods=['umap'])
    with pytest.raises(ConfigError, match='No column to colour by'):
        latent_map(sparse, toy, range(60), colours=['colour'])


def test_latents_need_a_posterior(toy):
    with pytest.raises(ConfigError, match='Not a variational autoencoder'):
        latents(toy_learner(toy, task='reconstruct'), toy, range(5))


def test_samples(toy, r3, sparse):
    drawn = sample_prior(sparse, 30)
    assert len(drawn) == 30 and drawn.channels == toy.channels
    for a, b in zip(drawn.entries['pT'], sample_prior(sparse, 30).entries['pT']):
        assert np.array_equal(a, b)
    assert not np.array_equal(sample_prior(sparse, 30, seed=1).entries['pT'][1], drawn.entries['pT'][1])
    assert len(sample_prior(sparse, 20, store=toy, mixture=3)) == 20
    lent = sample_prior(r3, 5, store=toy)
    assert lent.entries['pT'][2].min() >= toy.entries['pT'][2].min()


def test_samples_that_cannot_be_drawn(r3, sparse):
    with pytest.raises(ConfigError, match='Nothing to draw'):
        sample_prior(sparse, 0)
    with pytest.raises(ConfigError, match='A mixture is fitted to jets'):
        sample_prior(sparse, 5, mixture=2)
    with pytest.raises(ConfigError, match='samples have no unit'):
        sample_prior(r3, 5)


@pytest.mark.parametrize('fake,real', [([0.0, 1.0], [1.0]), ([1.0, np.nan], [0.0, 1.0])])
def test_wasserstein_needs_two_samples(fake, real):
    with pytest.raises(DataError, match='Two samples'):
        wasserstein(fake, real)


def test_tables_of_samples(qg):
    t = sample_table(qg, range(50))
    assert (t.multiplicity == t[['n_Tracks', 'n_ECAL', 'n_HCAL']].sum(axis=1)).all()
    tables = judge_samples(sample_table(qg), {'x': t}, 2)
    stores = judge_samples(qg, {'x': qg.select(range(50))}, 2)
    assert [e.value for e in tables['x']] == [e.value for e in stores['x']]


def test_independent_jets_keep_every_value(qg):
    alone = independent_jets(qg)
    for k in qg.channels:
        for a, b in zip(alone.entries[k][1:], qg.entries[k][1:]):
            assert np.array_equal(np.sort(a), np.sort(b))


# R3's preparation


def test_the_scale_of_a_set_is_r3s_own(toy):
    from jetbook.ae.vae import SetScale
    from jetbook.data.transforms import Resize

    x = Resize(32)(toy.images())
    standard = np.clip((x - x.mean()).numpy() / x.numpy().std(), 0, None)
    want = standard / standard.max((0, 2, 3), keepdims=True)
    scale = SetScale.from_store(toy, 32)
    np.testing.assert_allclose(scale(x).numpy(), want, rtol=1e-3, atol=1e-5)
    assert scale(10 * x).max() == 1  # a brighter jet than all of the training part
    back = scale.decode(scale(x))
    torch.testing.assert_close(back, torch.where(x > scale.mean, x, 0.0), rtol=1e-3, atol=1e-5)


def test_the_scale_of_a_set_belongs_to_the_run(toy, tmp_path):
    run = train('vae', toy, tmp_path / 'run', epochs=1, latent=2, bs=32, progress=False)
    seen = run.learner(toy).dls.train.idx
    from jetbook.ae.vae import SetScale

    scale = next(f for f in run.learner().dls.train.tfms.fs if isinstance(f, SetScale))
    torch.testing.assert_close(scale.top, SetScale.from_store(toy.select(np.sort(seen)), 32).top, rtol=1e-4, atol=0)


def test_padded_vae_sees_each_image_by_itself(toy):
    from jetbook.ae.vae import padded_vae

    x, _ = padded_vae(toy, split(toy), latent=2, bs=32).dls.one_batch()
    assert x.shape[-1] == 32
    close(x.amax((2, 3)), torch.ones(len(x), 1), 1e-5)
