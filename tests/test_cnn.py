"Image classifiers: what they refuse, what their loaders give, and that they train on any channels and sizes"
import numpy as np, pytest, torch
from fastai.interpret import ClassificationInterpretation

from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, DataError, toy_jets
from jetbook.data.observables import jet_profile
from jetbook.taggers.cnn import (ColumnsDL, LogScale, ProfileImageDL, block_occlusion, electron_photon_effnet, fused_cnn, grad_cam, image_dls, imagenet_weights, quark_gluon_cnn,
    resnet15, sparse_cnn, vit, with_channels)
from jetbook.train.recipes import get_recipe
from jetbook.train.runs import Run, evaluate, train
from jetbook.train.training import quiet, save_tensors

@pytest.fixture(scope='module')
def qg(): return sample('qg').select(np.arange(240))

@pytest.fixture(scope='module')
def egamma(): return sample('egamma').select(np.arange(200))

def test_columns_stand_beside_the_images_they_are_of(qg):
    dls = image_dls(qg, columns=True, bs=32)
    assert isinstance(dls.train, ColumnsDL) and dls.n_inp==2 and dls.split.digest==split(qg).digest
    idx = dls.valid.idx[:32]
    x,u,y = dls.valid.one_batch()
    assert np.array_equal(u.numpy(), np.stack([qg.columns['pt'][idx], qg.columns['m0'][idx]], 1).astype('f4')) and np.array_equal(y, qg.columns['y'][idx])
    again = dls.test_dl([5,3])
    assert np.allclose(again.one_batch()[1][:,0], qg.columns['pt'][[5,3]])

def test_jets_without_columns_are_refused_in_words(qg, egamma):
    with pytest.raises(DataError, match='transverse momentum'): image_dls(egamma, columns=True)
    with pytest.raises(DataError, match='transverse momentum'): quark_gluon_cnn(egamma)
    with pytest.raises(DataError, match='transverse momentum'): resnet15(egamma, columns=True)

def test_settings_that_do_not_fit_are_refused_in_words():
    small = toy_jets(40, 'wqcd')
    with pytest.raises(ConfigError, match='heads of vit'): vit(small, width=10, heads=4)
    with pytest.raises(ConfigError, match='out of range'): get_recipe('vgg').guard(small, settings=dict(width=0))

def test_scales_are_of_the_training_jets_alone(egamma):
    sp = split(egamma, .2, .2)
    t = image_dls(egamma, sp).train.tfms.fs[-1]
    assert isinstance(t, LogScale)
    for c,k in enumerate(egamma.channels): assert t.scale.flatten()[c]==pytest.approx(1/np.median(np.abs(egamma.select(sp.train).entries[k][2])), rel=1e-6)
    x = egamma.images(range(20))
    assert torch.equal(t(x)==0, x==0) and torch.equal(t(x)<0, x<0) and torch.allclose(t.decode(t(x)), x, atol=1e-5)

def test_a_run_is_opened_with_its_scale_and_scores_as_it_did(qg, tmp_path):
    run = train('resnet15', qg, tmp_path/'run', epochs=1, width=4, columns=True, bs=32, progress=False)
    want = evaluate(run, qg, 'valid')['auc']
    other = Run(tmp_path/'run').learner()
    assert torch.equal(other.dls.train.tfms.fs[-1].scale, run.learner(qg).dls.train.tfms.fs[-1].scale)
    assert evaluate(Run(tmp_path/'run'), qg, 'valid')['auc']==want

def test_interpretation_and_predictions_with_columns(qg):
    learn = resnet15(qg, width=4, columns=True, bs=32)
    with quiet(learn):
        learn.fine_tune(1, 1e-3)
        interp = ClassificationInterpretation.from_learner(learn)
        assert interp.confusion_matrix().sum()==len(learn.dls.valid.idx)
        interp.plot_top_losses(2)
        name,_,p = learn.predict(3)
    assert name in qg.classes and p.sum()==pytest.approx(1, abs=1e-5)

def test_only_the_dense_layer_is_decayed(egamma):
    learn = electron_photon_effnet(egamma, bs=32, l2=.25)
    learn.create_opt()
    groups = learn.opt.opt.param_groups
    with quiet(learn): learn.fit(1, 1e-3)
    assert [g['weight_decay'] for g in learn.opt.opt.param_groups]==[0,0,.5] and [g['momentum'] for g in groups]==[.6]*3
    assert groups[2]['params'][0].shape==(256,1408) and sum(len(g['params']) for g in groups)==len(list(learn.model.parameters()))

def test_weights_of_another_network_are_refused(egamma, tmp_path):
    from torchvision.models import efficientnet_b0
    save_tensors(tmp_path/'b0.safetensors', efficientnet_b0().state_dict())
    learn = electron_photon_effnet(egamma)
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with pytest.raises(ConfigError, match='another network'): imagenet_weights(learn.model.body[-1], tmp_path/'b0.safetensors')
    assert all(torch.equal(before[k], v) for k,v in learn.model.state_dict().items())

@pytest.mark.parametrize('name', ['resnet15','resnet18','vgg','convnext','vit'])
def test_any_number_of_channels_and_any_target(name):
    jets = toy_jets(60, 'wqcd')
    learn = get_recipe(name).func(jets, bs=8)
    x,y = learn.dls.one_batch()
    out = learn.model(x)
    learn.loss_func(out, y).backward()
    assert out.shape==(8,2) and all(p.grad is not None and torch.isfinite(p.grad).all() for p in learn.model.parameters())

def test_the_first_convolution_keeps_its_settings():
    net = with_channels(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, 2, 3, bias=False)), 8)
    assert (net[0].in_channels, net[0].kernel_size, net[0].stride, net[0].padding, net[0].bias)==(8,(7,7),(2,2),(3,3),None)

def gradients(learn, b):
    learn.model.train()
    learn.loss_func(learn.model(*b[:-1]), b[-1]).backward()
    return [p.grad for p in learn.model.parameters()]

@pytest.mark.parametrize('kind,channels', [('egamma',None), ('wqcd',None), ('qg',['HCAL']), ('qg',['ECAL','HCAL'])])
def test_lit_pixels_give_what_dense_images_give(kind, channels):
    jets = sample(kind).select(np.arange(60), channels=channels)
    nets = []
    for plain in (False, True):
        torch.manual_seed(0)
        nets.append(sparse_cnn(jets, plain=plain, width=8, tower_width=8, dropout=0., flip=False, bs=8))
    b = nets[0].dls.valid.one_batch()
    with torch.no_grad(): out,want = (n.model.eval()(*b[:-1]) for n in nets)
    assert torch.allclose(out, want, atol=1e-5)
    for a,g in zip(*(gradients(n, b) for n in nets)): assert (a-g).abs().max() <= 1e-5+.02*g.abs().max()

def test_jets_do_not_see_each_other_and_may_be_empty(qg):
    net = sparse_cnn(qg, width=8, tower_width=8).model.eval()
    x = torch.log1p(1000*qg.images(range(6)))
    x[3] = 0
    with torch.no_grad():
        out = net(x)
        alone = torch.cat([net(x[i:i+1]) for i in range(6)])
        none = net(torch.zeros(2, 3, 125, 125))
    assert torch.isfinite(out).all() and torch.isfinite(none).all() and torch.allclose(out, alone, atol=1e-5)

def test_mirror_images_get_the_same_score(qg):
    net = sparse_cnn(qg, width=8, tower_width=8, mirrors=True).model.eval()
    x = torch.log1p(1000*qg.images(range(4)))
    with torch.no_grad(): assert torch.allclose(net(x), net(x.flip(-2)), atol=1e-5) and net(x).exp().sum(1).allclose(torch.ones(4), atol=1e-5)
    net.mirrors = False
    with torch.no_grad(): assert not torch.allclose(net(x), net(x.flip(-2)), atol=1e-5)

def test_profiles_are_those_of_the_jets_asked_for(qg):
    learn = fused_cnn(qg, width=8, tower_width=8, bs=16)
    other = sample('qg').select(np.arange(300, 340))
    x,u,y = learn.dls.test_dl(other, idx=[7,2]).one_batch()
    assert isinstance(learn.dls.valid, ProfileImageDL) and np.allclose(u[:,2:], jet_profile(other, [7,2]).values, rtol=1e-3, atol=1e-3)
    assert np.allclose(u[:,0], other.columns['pt'][[7,2]]) and learn.model.eval()(x, u).shape==(2,2)

def test_what_is_not_there_is_worth_nothing(qg):
    net = sparse_cnn(qg, width=8, tower_width=8).model
    x = torch.log1p(1000*qg.images(range(3)))
    x[:,:,:50] = 0
    worth = block_occlusion(net, x, block=25)
    assert worth.shape==(3,5,5) and (worth[:,:2]==0).all() and (worth[:,2:]!=0).any()
    cam = grad_cam(net, x)
    assert cam.shape==(3,125,125) and torch.isfinite(cam).all() and all(p.grad is None for p in net.parameters())
