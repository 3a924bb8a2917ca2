"Metrics at their edges: wrong input, ties, one class, samples that run out, files"
import json

import numpy as np, pytest, torch
from numpy.testing import assert_allclose

from jetbook.data.store import DataError, toy_jets
from jetbook.losses import KernelMSE
from jetbook.metrics import (ReconstructionMeter, background_rejection, bootstrap_auc, bright_pixels, channel_mse, classification_metrics,
    observable_residuals, reconstruction_metrics, residual_sigma)

STORE = toy_jets(24)
RAW = STORE.images()
X = RAW/RAW.amax((-2,-1), keepdim=True).clamp_min(1e-8)
P = KernelMSE(1.).smooth(X)
RNG = np.random.default_rng(0)
Y = RNG.integers(0, 2, 4000)
SCORE = 1/(1+np.exp(-RNG.normal(1.8*Y-.9, 1.5)))

@pytest.mark.parametrize('call,why', [
    (lambda: channel_mse(X, X[:,:1]), 'differ in shape'),
    (lambda: bright_pixels(X, X[:,:1]), 'differ in shape'),
    (lambda: residual_sigma([np.nan]), 'empty input images'),
    (lambda: residual_sigma([0., 1.], method='fwhm'), "'std' or 'quantile'"),
    (lambda: reconstruction_metrics(X, X, ('ECAL',)), 'Channels and images disagree'),
    (lambda: ReconstructionMeter(STORE.channels).compute(), 'call update'),
    (lambda: bootstrap_auc(np.ones(5), np.ones(5)), 'both present'),
    (lambda: bootstrap_auc([0, 1, 2], [0., .5, 1.]), 'both present'),
    (lambda: bootstrap_auc(Y, SCORE[:-1]), 'one score a jet'),
    (lambda: bootstrap_auc([0, 1], [0., np.nan]), 'diverged training'),
    (lambda: background_rejection(Y, SCORE, 30), 'not a percentage'),
    (lambda: background_rejection(Y, SCORE, 0), 'not a percentage'),
    (lambda: classification_metrics(Y, np.log(SCORE/(1-SCORE))), 'softmax or sigmoid')])
def test_what_makes_no_sense_is_refused(call, why):
    with pytest.raises(DataError, match=why): call()

def test_each_channel_has_its_own_error():
    for c in range(3): assert_allclose(channel_mse(P, X)[c], (P-X)[:,c].square().mean(), rtol=1e-5)
    assert_allclose(channel_mse(P, X, 'none').mean(0), channel_mse(P, X), rtol=1e-5)

def test_a_black_image_finds_nothing_and_a_copy_all():
    for v in bright_pixels(0*X, X).values(): assert v.tolist()==[0, 0, 0]
    for v in bright_pixels(X, X).values(): assert v.tolist()==[1, 1, 1]

def test_an_empty_jet_has_no_residual():
    for v in observable_residuals(RAW[:1], 0*RAW[:1], STORE.cell).values(): assert np.isnan(v).all()

def test_residuals_that_are_not_finite_are_left_out():
    core = RNG.normal(0, .05, 1000)
    assert residual_sigma([*core, np.nan, np.inf])==residual_sigma(core)

def test_widths_of_a_reconstruction_lie_in_their_intervals():
    m = reconstruction_metrics(P, X, STORE.channels, cell=STORE.cell)
    assert_allclose(m['mass_2sigma'], residual_sigma(observable_residuals(P, X, STORE.cell)['mass']), rtol=1e-9)
    assert m['mass_2sigma_lo']<m['mass_2sigma']<m['mass_2sigma_hi']
    assert 'pt_2sigma' not in reconstruction_metrics(X, X, STORE.channels)

def test_one_jet_has_no_standard_error():
    assert reconstruction_metrics(P[:1], X[:1], STORE.channels)['mse_err']==float('inf')

def test_arrays_and_tensors_of_any_precision_give_the_same_area():
    assert bootstrap_auc(Y, SCORE, seed=1)==bootstrap_auc(torch.tensor(Y), torch.tensor(SCORE), seed=1)
    single = SCORE.astype('float32')
    from sklearn.metrics import roc_auc_score
    assert_allclose(bootstrap_auc(Y, single, n_boot=1).value, roc_auc_score(Y, single), rtol=1e-12)

def test_a_seed_gives_its_interval():
    assert bootstrap_auc(Y, SCORE, 50, seed=1)==bootstrap_auc(Y, SCORE, 50, seed=1)!=bootstrap_auc(Y, SCORE, 50, seed=2)

def test_a_rejection_without_passing_background_is_infinite_but_bounded():
    r = background_rejection([0]*100+[1]*50, [0.]*100+[1.]*50)
    assert r[:3]==(np.inf,)*3 and 30<r.bound<40

def test_a_rejection_lies_in_its_interval_above_its_bound():
    r = background_rejection(Y, SCORE, .3)
    assert r.lo<r.value<r.hi and r.bound<r.value

def test_the_metrics_of_a_classifier_are_ready_for_a_file_and_agree_with_each_alone():
    m = classification_metrics(Y, SCORE)
    assert json.loads(json.dumps(m))==m
    assert (m['auc'], m['auc_lo'], m['auc_hi'])==tuple(bootstrap_auc(Y, SCORE))
    assert (m['rejection_30'], m['rejection_30_lo'], m['rejection_30_hi'], m['rejection_30_bound'])==tuple(background_rejection(Y, SCORE, .3))
    (tn,fp),(fn,tp) = m['confusion_matrix']
    assert tp==((Y==1)&(SCORE>.5)).sum() and tp+fn==Y.sum() and tn+fp+fn+tp==len(Y) and m['accuracy']==pytest.approx((tn+tp)/len(Y))

def test_the_interval_of_the_accuracy_is_about_the_binomial():
    m = classification_metrics(Y, SCORE)
    err = np.sqrt(m['accuracy']*(1-m['accuracy'])/len(Y))
    assert_allclose((m['accuracy_hi']-m['accuracy_lo'])/(2*1.96), err, rtol=.1)
