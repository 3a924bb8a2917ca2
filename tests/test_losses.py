"Losses at their edges: wrong shapes, empty jets, extreme logits, mixed precision"
import numpy as np, pytest, torch
import torch.nn.functional as F
from functools import partial
from contextlib import nullcontext
from types import SimpleNamespace
from torch.testing import assert_close

from jetbook import losses
from jetbook.data.store import DataError, toy_jets
from jetbook.losses import (BCEReconstruction, ContrastiveLoss, FocalLoss, GaussianNLL, KernelMSE, KLDivergence, NTXentLoss, ObservableLoss,
    SupConLoss, WeightedMSE, check_pair, image_pt_mass, pixel_coordinates)

close = partial(assert_close, rtol=1e-5, atol=0)  # relative: losses of empty images are small numbers
STORE = toy_jets(24)
RAW = STORE.images()
X = RAW/RAW.amax((-2,-1), keepdim=True).clamp_min(1e-8)
P = KernelMSE(1.).smooth(X)
MIXED = partial(torch.autocast, 'cpu', dtype=torch.bfloat16)

@pytest.mark.parametrize('call,why', [
    (lambda: check_pair(X, X[:,:1]), 'differ in shape'),
    (lambda: WeightedMSE()(X[:,0], X[:,:1]), 'missing channel axis'),
    (lambda: WeightedMSE(reduction='max')(X, X), 'one number per jet'),
    (lambda: KLDivergence()(torch.zeros(2, 3), torch.zeros(2, 4)), 'differ in shape'),
    (lambda: GaussianNLL(per='batch')(X, X), "per='batch'"),
    (lambda: BCEReconstruction()(X, 2*X), 'min-max scale first'),
    (lambda: BCEReconstruction()(X, X-1), 'min-max scale first'),
    (lambda: image_pt_mass(X, .1, eta_axis='x'), "'row' or 'col'"),
    (lambda: KernelMSE(kernel='box'), "'gaussian' or 'exponential'"),
    (lambda: KernelMSE(0.), 'nn.MSELoss'),
    (lambda: ContrastiveLoss()(torch.zeros(1, 3), torch.zeros(1)), 'at least 2'),
    (lambda: NTXentLoss()(torch.zeros(3, 2), torch.zeros(2, 2)), 'differ in shape')])
def test_what_makes_no_sense_is_refused(call, why):
    with pytest.raises(DataError, match=why): call()

@pytest.mark.parametrize('loss', [WeightedMSE, GaussianNLL, BCEReconstruction, partial(ObservableLoss, STORE.cell), KernelMSE])
def test_the_mean_and_the_sum_are_those_of_the_jets(loss):
    "but for WeightedMSE, whose mean is over the pixels of the whole batch, as R1's"
    per_jet = loss(reduction='none')(P, X)
    assert per_jet.shape==(len(X),) and per_jet.std()>0
    close(loss(reduction='sum')(P, X), per_jet.sum())
    if loss is not WeightedMSE: close(loss()(P, X), per_jet.mean())

def test_the_best_width_is_the_rms_of_each_channel():
    rms = (P-X).double().square().mean((0,2,3)).sqrt()
    for c in range(3):
        nats = GaussianNLL(per='pixel')(P[:,c:c+1].double(), X[:,c:c+1].double())
        close(nats, rms[c].log() + .5 + .5*np.log(2*np.pi), rtol=1e-6)

def test_a_width_has_a_floor():
    assert GaussianNLL()(X, X).isfinite()
    close(GaussianNLL(per='pixel', min_sigma=1e-2)(X, X), torch.tensor(np.log(1e-2) + .5*np.log(2*np.pi), dtype=X.dtype))

def test_logits_and_probabilities_give_one_cross_entropy():
    z = torch.randn(X.shape, generator=torch.Generator().manual_seed(0))
    close(BCEReconstruction(logits=True, per='pixel')(z, X), BCEReconstruction(per='pixel')(z.sigmoid(), X))

def test_mass_and_momentum_scale_with_the_image():
    for a,b in zip(image_pt_mass(3*RAW, STORE.cell), image_pt_mass(RAW, STORE.cell)): close(a, 3*b)

def test_pixel_coordinates_are_odd_and_even_about_the_middle():
    one,a,b,sinh,sin = pixel_coordinates((25, 25), .1, 'row', torch.zeros(1, dtype=torch.float64)).unbind(1)
    assert (one==1).all() and a[312]==b[312]==sinh[312]==sin[312]==0
    for v in (a, b): close(v, v.flip(0), rtol=1e-12)
    for v in (sinh, sin): assert_close(v, -v.flip(0), rtol=1e-12, atol=1e-15)

def test_a_single_pixel_has_no_mass_and_finite_gradients():
    image = F.one_hot(torch.tensor([312]), 625).float().view(1, 1, 25, 25).requires_grad_()
    pt,m = image_pt_mass(image, .1)
    assert m.item()==0 and pt.item()==pytest.approx(1)
    (pt+m).sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum()>0

def test_observables_and_kernels_keep_their_precision_under_autocast():
    want = image_pt_mass(RAW, STORE.cell)[1]
    smooth = KernelMSE(2.)
    exact = smooth(P, X)
    with MIXED():
        assert torch.equal(image_pt_mass(RAW, STORE.cell)[1], want)
        close(smooth(P, X), exact, rtol=1e-7)

def test_the_parts_of_an_observable_loss_are_weighted():
    close(ObservableLoss(STORE.cell, pixel=2., pt=0, mass=0)(X/2, X), 2*F.mse_loss(X/2, X))
    t = ObservableLoss(STORE.cell).terms(X/2, X)
    close(ObservableLoss(STORE.cell, pixel=1., pt=.3, mass=.2, reduction='none')(X/2, X), t['pixel'] + .3*t['pt'] + .2*t['mass'])

@pytest.mark.parametrize('pred,target', [(torch.full_like(X, .5), X), (torch.zeros_like(X), 0*X)])
def test_an_untrained_answer_and_an_empty_jet_have_finite_gradients(pred, target):
    pred = pred.clone().requires_grad_()
    ObservableLoss(STORE.cell)(pred, target).backward()
    assert pred.grad.isfinite().all()

def test_gradients_of_the_observable_loss():
    a,b = torch.rand(2, 2, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda v: ObservableLoss(.1)(v, b), a.requires_grad_())

@pytest.mark.parametrize('kernel', ['gaussian', 'exponential'])
def test_a_kernel_keeps_the_energy_inside_the_window(kernel):
    inside = torch.zeros(1, 1, 101, 101)
    inside[0,0,50,50] = 1
    assert KernelMSE(2., kernel).smooth(inside).sum().item()==pytest.approx(1, abs=1e-5)

def test_far_columns_and_the_size_do_not_matter_to_a_kernel():
    smooth = KernelMSE(2.).smooth
    assert_close(smooth(X[...,:100])[...,:80], smooth(X)[...,:80], rtol=1e-5, atol=1e-6)

def test_focal_loss_of_three_classes_with_weights():
    g = torch.Generator().manual_seed(0)
    z,y,w = torch.randn(64, 3, generator=g), torch.randint(0, 3, (64,), generator=g), torch.tensor([.2, .3, .5])
    p = z.softmax(1)[range(64), y]
    close(FocalLoss(1.5, (.2, .3, .5), reduction='none')(z, y), -w[y]*(1-p)**1.5*p.log(), rtol=1e-4)

def test_focal_loss_of_one_logit_without_weights():
    g = torch.Generator().manual_seed(0)
    z,y = torch.randn(64, 2, generator=g)*3, torch.randint(0, 2, (64,), generator=g)
    close(FocalLoss(2.)(z, y), FocalLoss(2.)(z[:,1]-z[:,0], y))
    f = FocalLoss()
    assert torch.equal(f.decodes(f.activation(z[:,:1])), (z[:,0]>0).long())

def test_confident_logits_have_finite_gradients():
    sure = torch.tensor([[200., -200.], [-200., 200.]], requires_grad=True)
    FocalLoss(.5)(sure, torch.tensor([0, 0])).backward()
    assert sure.grad.isfinite().all() and sure.grad[1].abs().sum()>0

def embeddings(): return torch.randn(2, 24, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

def test_jets_in_one_point_have_no_direction_but_no_nan():
    same = torch.zeros(4, 3, requires_grad=True)
    ContrastiveLoss()(same, torch.arange(4)%2).backward()
    assert same.grad.isfinite().all()

def test_low_temperatures_do_not_overflow():
    z,z2 = (v.float() for v in embeddings())
    for loss,other in ((NTXentLoss(1e-3), z2), (SupConLoss(1e-3), torch.arange(24)%2)):
        cold = z.clone().requires_grad_()
        loss(cold, other).backward()
        assert cold.grad.isfinite().all() and cold.grad.abs().sum()>0

def test_similarities_keep_their_precision_under_autocast():
    z,z2 = embeddings()
    with MIXED(): low = NTXentLoss(.1)(z.float(), z2.float())
    close(low.item(), NTXentLoss(.1)(z, z2).item())

def test_without_a_pair_nothing_is_pulled():
    z = embeddings()[0].float().requires_grad_()
    SupConLoss()(z, torch.arange(24)).backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_no_double_precision_on_a_device_without_it(monkeypatch):
    "Apple's GPUs have no float64: grids are made in main memory, tensors copied there first"
    made = []
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())  # has no 'meta'

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, f, types, args=(), kwargs=None):
            out = f(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type == 'meta' and out.dtype == torch.float64:
                made.append(f)
            return out

    x = torch.zeros(2, 1, 5, 5, device='meta')
    with Watch():
        assert losses.pixel_coordinates((5, 5), 0.1, 'row', x).device.type == 'meta'
        losses.ObservableLoss(0.1)(x, x)
        losses.KernelMSE(1.0)(x, x)
        losses.weighted_mse(x, x)
        losses.KLDivergence()(x, x)
        z, y = torch.zeros(4, 2, device='meta'), torch.zeros(4, dtype=torch.long, device='meta')
        losses.FocalLoss(alpha=0.3)(z, y)
        losses.SupConLoss()(z, y)
    assert not made
    calls = []
    on_mps = SimpleNamespace(device=SimpleNamespace(type='mps'), cpu=lambda: calls.append('cpu') or torch.ones(2))
    assert losses.double(on_mps).dtype == torch.float64 and calls == ['cpu']
