"Image classifiers: what they refuse, what their loaders give, and that they train on any channels and sizes"
import numpy as np, pytest, torch
from fastai.interpret import ClassificationInterpretation

from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.data.store import ConfigError, DataError, toy_jets
from jetbook.taggers.cnn import ColumnsDL, LogScale, electron_photon_effnet, image_dls, imagenet_weights, quark_gluon_cnn, resnet15, resnet18, vgg, vit, with_channels
from jetbook.train.recipes import get_recipe
from jetbook.train.runs import Run, evaluate, predict, train
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
