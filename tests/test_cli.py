"The command as a process: its help, exit status, what goes to which stream, and whole chains of verbs"
import contextlib, io, json, os, re, shlex, signal, subprocess, sys, time
from pathlib import Path

import pytest

from conftest import tamper
from jetbook.cli import VERBS

COMMAND = [str(Path(sys.executable).parent/'jetbook')]
MODULE = [sys.executable, '-m', 'jetbook.cli']
ENV = {**os.environ, 'OMP_NUM_THREADS':'1', 'COLUMNS':'100'}

def jetbook(*args, status=0, cwd=None, cmd=COMMAND):
    "Run the command to its end; its exit status must be `status`, and no traceback may show unless asked for"
    r = subprocess.run([*cmd, *map(str,args)], cwd=cwd, env=ENV, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400)
    assert r.returncode==status, f'exit {r.returncode}\n{r.stdout[-3000:]}\n{r.stderr[-3000:]}'
    assert ('Traceback' in r.stderr) == ('--debug' in args), r.stderr
    return r

def here(*args, cwd=None):
    "The command without a process of its own, which takes seconds to start: (status, output, errors)"
    from fastcore.xtras import working_directory
    from jetbook.cli import main
    out,err = io.StringIO(),io.StringIO()
    with working_directory(cwd or '.'), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: status = main([str(a) for a in args])
        except SystemExit as e: status = e.code
    return status,out.getvalue(),err.getvalue()

def start(*args, **kwargs): # a shell that puts its jobs into the background lets them ignore SIGINT
    return subprocess.Popen([*COMMAND, *map(str,args)], env=ENV, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)

@pytest.mark.parametrize('verb', VERBS)
def test_help_of(verb):
    r = jetbook(verb, '--help')
    assert r.stdout.startswith(f'usage: jetbook {verb} ') and r.stderr==''
    assert f'jetbook {verb} ' in r.stdout.split('example:')[1]  # each shows itself at work
    options = re.findall(r'^  (-\S|--\S+|[A-Z]+\b)', r.stdout, re.M)
    assert '--debug' in r.stdout and options

def test_help_is_an_overview_of_all_verbs():
    text = jetbook('--help').stdout
    for name in VERBS: assert re.search(rf'^  {name} ', text, re.M), name
    assert max(map(len, text.splitlines())) <= 100
    assert 'exit status' in text

def test_examples_in_the_help_are_valid():
    "Each example parses, as a shell would split it"
    from jetbook.cli import _EPILOG, parser
    lines = [l for t in (_EPILOG.split('\n\n')[0], *(v['example'] for v in VERBS.values())) for l in t.splitlines() if l.startswith('  jetbook')]
    assert len(lines) > len(VERBS)
    for l in lines: parser().parse_args(shlex.split(re.split(r'\s{3,}', l.strip())[0])[1:])

HEAVY = {'torch','fastai','numba','matplotlib','scipy','sklearn'}

def loaded(code, cwd=None):
    "The modules that are loaded after `code` has run in a fresh process"
    code += "\nimport sys, json; print(json.dumps([k for k in sys.modules if '.' not in k]))"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=cwd, env=ENV)
    assert r.returncode==0, r.stderr
    return set(json.loads(r.stdout.splitlines()[-1]))

def test_help_imports_the_standard_library_only():
    assert not loaded('import jetbook.cli as c; c.parser().format_help()') & (HEAVY | {'numpy','pandas','h5py'})

@pytest.mark.parametrize('line', ['recipes', 'recipes conv_ae', 'detectors', 'info sample:qg', 'info toy.h5', 'pack toy.h5 -o light.jets.h5 -q', 'verify light.jets.h5 toy.h5 -q'])
def test_commands_that_train_nothing_import_nothing_that_trains(folder, line):
    "Only what packs dense images may load numba for its kernels, and scipy with it"
    allowed = {'numba','scipy'} if 'toy.h5' in line else set()
    code = f'import jetbook.cli as c; assert c.main({line.split()!r})==0'
    assert not loaded(code, folder) & (HEAVY - allowed)

@pytest.mark.parametrize('cmd', [COMMAND, MODULE])
def test_version(cmd):
    import jetbook as lib
    assert jetbook('--version', cmd=cmd).stdout.strip()==f'jetbook {lib.__version__}'

@pytest.mark.parametrize('line', ['', 'paint', 'info', 'pack a.h5', 'simulate qg -o a.h5', 'train conv_ae a.h5 -o r --epochs many', 'evaluate r --part future', 'info f --jason'])
def test_wrong_usage(line):
    r = jetbook(*line.split(), status=2)
    assert r.stdout=='' and r.stderr.startswith('usage: jetbook')

def test_alone_it_lists_the_verbs():
    r = jetbook(status=2)
    assert r.stdout=='' and re.search('^  predict ', r.stderr, re.M) and 'exit status' in r.stderr

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Toy jets, packed and dense, and images to train on that are small"
    from jetbook.data.store import toy_jets
    import jetbook.data.files
    d = tmp_path_factory.mktemp('cli')
    toy_jets(40).to_dense(d/'toy.h5')
    toy_jets(80, 'wqcd').save(d/'w.jets.h5')
    return d

def test_error_says_what_to_do(folder):
    r = jetbook('info', 'nothing.h5', status=1, cwd=folder)
    assert r.stdout=='' and r.stderr.splitlines()==['jetbook: No such file', '  Found: nothing.h5', '  Do: check the name and the folder']
    assert 'MissingFile' in jetbook('info', 'nothing.h5', '--debug', status=1, cwd=folder).stderr

def test_other_people_s_errors_are_short_too(folder):
    (folder/'locked').mkdir(exist_ok=True)
    r = jetbook('verify', 'locked', status=1, cwd=folder)
    assert 'locked' in r.stderr and r.stdout==''
    (folder/'text.h5').write_text('these are no jets')
    assert 'HDF5' in jetbook('info', 'text.h5', status=1, cwd=folder).stderr

def test_pack_info_verify_and_back(folder):
    r = jetbook('pack', 'toy.h5', '-o', 'a.jets.h5', cwd=folder)
    assert 'a.jets.h5: 40 jets' in r.stdout and '%' not in r.stdout and '100%' in r.stderr    # the bar is not among the results
    i = json.loads(here('info', 'a.jets.h5', '--json', cwd=folder)[1])
    assert i['jets']==40 and i['shape']==[125,125,3] and list(i['channels'])==['Tracks','ECAL','HCAL'] and i['channels']['HCAL']['upsample']==5
    dense = jetbook('info', 'toy.h5', cwd=folder)
    assert 'layout     cms' in dense.stdout and re.search(r'^HCAL +25x25 +5 ', dense.stdout, re.M)
    r = jetbook('export-dense', 'a.jets.h5', '-o', 'b.h5', '-q', cwd=folder)
    assert r.stderr==''
    assert json.loads(here('verify', 'a.jets.h5', 'b.h5', '--json', '-q', cwd=folder)[1])==dict(jets=40, checksums=12, compared=40, identical=True)

def test_verify_finds_one_wrong_bit(folder):
    import h5py
    assert here('pack', 'toy.h5', '-q', '-o', 'c.jets.h5', cwd=folder)[0]==0
    with h5py.File(folder/'c.jets.h5','r+') as f: f['ECAL/value'].write_direct((f['ECAL/value'][:].view('uint32') ^ 1).view('float32'))
    assert 'ECAL/value is damaged: its checksum differs' in here('verify', 'c.jets.h5', '-q', cwd=folder)[2]

def test_info_of_a_sample_that_comes_with_jetbook():
    status,out,err = here('info', 'sample:qg')
    assert (status,err)==(0,'') and re.search('^jets +20,000$', out, re.M)
    assert "Found: higgs" in here('info', 'sample:higgs')[2]
    assert here('verify', 'sample:wqcd', '--json', '-q')[0]==0

def test_files_that_are_none(folder):
    (folder/'a folder.h5').mkdir()
    assert here('info', 'a folder.h5', cwd=folder)[0]==1
    assert here('sample', 'higgs', '-o', 'h.jets.h5', cwd=folder)[0]==1 and not (folder/'h.jets.h5').exists()
    assert 'No such kind of jets' in here('simulate', 'higgs', '-n', 10, '-o', 'h.jets.h5', cwd=folder)[2]

def test_rounded_values_differ_from_the_source(folder):
    assert here('pack', 'toy.h5', '-q', '-o', 'half.jets.h5', '--float16', cwd=folder)[0]==0
    status,out,err = here('pack', 'toy.h5', '-o', 'half.jets.h5', cwd=folder)
    assert (status,err)==(1, 'jetbook: half.jets.h5 already exists\n  Found: a file\n  Do: pass --overwrite, or choose another name\n')
    assert here('pack', 'toy.h5', '-q', '-o', 'half.jets.h5', '--overwrite', '--float16', cwd=folder)[0]==0
    status,out,err = here('verify', 'half.jets.h5', 'toy.h5', cwd=folder)
    assert (status,out)==(1,'') and 'differs from its source' in err

def test_labels_under_another_name(folder):
    import h5py
    from jetbook.data.store import JetStore, toy_jets
    s = toy_jets(9)
    with h5py.File(folder/'mine.h5','w') as f: f.update(X_jets=s.images().permute(0,2,3,1).numpy(), mine=s.columns['y'])
    status,out,err = here('pack', 'mine.h5', '-o', 'mine.jets.h5', cwd=folder)
    assert (status,out)==(1,'') and 'Do: pass --layout cms to go without' in err
    status,out,err = here('pack', 'mine.h5', '--layout', 'cms', '-o', 'without.jets.h5', cwd=folder)
    assert status==0 and 'no y: packed without labels' in err
    assert here('pack', 'mine.h5', '--layout', 'cms', '--label', 'mine', '-o', 'mine.jets.h5', '-q', cwd=folder)[0]==0
    assert list(JetStore(folder/'mine.jets.h5').columns)==['y']
    assert 'bit for bit' in here('verify', 'mine.jets.h5', 'mine.h5', '--layout', 'cms', '--label', 'mine', '-q', cwd=folder)[1]

def test_export_dense_in_chunks(folder):
    import h5py
    assert here('export-dense', 'sample:qg', '-n', 5, '--gzip', '-o', 'five.h5', '-q', cwd=folder)[0]==0
    with h5py.File(folder/'five.h5') as f:
        assert f['X_jets'].shape==(5,125,125,3) and f['X_jets'].chunks==(1,125,125,3) and sorted(f)==['X_jets','m0','pt','y']

def test_catalogues(folder):
    assert 'arXiv:2105.05735' in here('detectors')[1] and 'arXiv:' not in here('detectors', '--json')[1]
    assert 'surrogates' in json.loads(here('detectors', '--json')[1])
    assert 'Found: conf_ae (did you mean conv_ae?)' in here('recipes', 'conf_ae')[2]

def test_train_evaluate_compare(folder):
    first = jetbook('train', 'conv_ae', 'w.jets.h5', '-o', 'runs/a', '--epochs', 2, '--lr', '1e-3', '--set', 'bs=16', cwd=folder)
    assert 'runs/a: 2 epochs' in first.stdout and 'train conv_ae: 100%' in first.stderr
    config = json.loads((folder/'runs/a/config.json').read_text())
    assert (config['settings']['bs'], config['epochs'], config['lr_max'])==(16,2,1e-3)
    assert here('train', 'conv_ae', 'w.jets.h5', '-o', 'runs/b', '--epochs', 1, '--seed', 3, '-q', cwd=folder)[0]==0
    a = json.loads(here('evaluate', 'runs/a', 'w.jets.h5', '--json', cwd=folder)[1])
    assert a['n']==12 and 0 < a['mse'] < 1
    assert re.search(r'^mse +0\.', here('evaluate', 'runs/b', 'w.jets.h5', cwd=folder)[1], re.M)
    assert here('compare', 'runs/a', 'runs/b', '--plot', 'ab.png', cwd=folder)[1].endswith('\nab.png: losses\n')
    t = json.loads(here('compare', 'runs/a', 'runs/b', '--json', '--plot', 'ab.png', cwd=folder)[1])
    assert list(t)==['a','b'] and t['b']['seed']==3 and t['a']['mse']==a['mse']
    assert (folder/'ab.png').read_bytes()[:4]==b'\x89PNG'

SHORT = '--epochs 8 --lr 0.003 --schedule one_cycle --set begin=0.05 --set bs=16'.split()

@pytest.fixture(scope='module')
def losses(tmp_path_factory):
    "Two autoencoders, trained with the weighted loss and with plain mean squared error, and scored"
    from jetbook.data.store import toy_jets
    d = tmp_path_factory.mktemp('losses')
    toy_jets(300, 'wqcd').save(d/'w.jets.h5')
    toy_jets(200, 'wqcd').save(d/'other.jets.h5')
    for name in ('weighted','mse'):
        assert here('train', 'conv_ae', 'w.jets.h5', '-o', f'runs/{name}', *SHORT, '--set', f'loss={name}', '-q', cwd=d)[0]==0
        assert here('evaluate', f'runs/{name}', 'w.jets.h5', cwd=d)[0]==0
    return d

def test_two_losses_side_by_side(losses):
    r = json.loads(here('compare', 'runs/weighted', 'runs/mse', '--json', cwd=losses)[1])
    assert list(r)==['weighted','mse'] and 'loss=mse' in r['mse']['settings'] and r['weighted']['recall_pT'] > r['mse']['recall_pT']
    assert json.loads(here('evaluate', 'runs/mse', 'w.jets.h5', '--part', 'valid', '--json', cwd=losses)[1])['n']==45
    assert here('evaluate', 'runs/mse', 'w.jets.h5', cwd=losses)[::2]==(0,'')    # the same test part again: no second reading

def test_predict_warns_of_jets_it_was_trained_on(losses):
    status,out,err = here('predict', 'runs/mse', 'w.jets.h5', '-o', 'own.csv', '-q', cwd=losses)
    assert status==0 and err.startswith('jetbook: warning: mse was trained on 210 of these 300 jets') and err.count('\n')==1
    assert 'own.csv: 300 jets' in out and out.endswith('score: mean squared error\n')

def test_a_run_folder_is_not_trained_over(losses):
    again = ('train', 'conv_ae', 'w.jets.h5', '-o', 'runs/mse', *SHORT, '--set', 'loss=mse', '-q')
    assert here(*again, cwd=losses)==(0, 'runs/mse is already trained: 8 epochs\n', '')
    status,out,err = here(*again, '--n-train', 100, '--seed', 4, cwd=losses)
    assert status==1 and err.splitlines()[:3]==['jetbook: The folder holds another run', '  Found: --seed 0; n_train=None', '  Expected: --seed 4; --n-train 100']
    assert 'or --part all' in here('evaluate', 'runs/mse', 'other.jets.h5', cwd=losses)[2]

@pytest.mark.parametrize('line,words', [
    ('train resnet w.jets.h5 -o r', 'conv_ae, '), ('train conf_ae w.jets.h5 -o r', 'Found: conf_ae (did you mean conv_ae?)'),
    ('train conv_ae w.jets.h5 -o r --set depth=3', 'no such setting'), ('train conv_ae w.jets.h5 -o r --channels ECAL', 'ECAL'),
    ('train conv_ae w.jets.h5 -o runs/mse', 'another run'), ('evaluate runs/mse', 'do not come with jetbook'),
    ('evaluate runs/none w.jets.h5', 'config.json'), ('compare runs/none', 'config.json')])
def test_errors_of_training_and_scoring(losses, line, words):
    status,out,err = here(*line.split(), cwd=losses)
    assert (status,out)==(1,'') and words in err and not (losses/'r').exists()

@pytest.fixture(scope='module')
def taggers(tmp_path_factory):
    "A tagger trained with two seeds, and set beside single observables and boosted trees"
    from jetbook.data.hdf5 import sample
    d = tmp_path_factory.mktemp('taggers')
    sample('qg').select(range(2000)).save(d/'qg.jets.h5')
    new = sample('qg').select(range(4000, 4300))
    new._replace(columns={k:new.columns[k] for k in ('pt','m0')}).save(d/'new.jets.h5')
    new.save(d/'labelled.jets.h5')
    status,out,err = here(*COMPARE, '--plot', 'roc.png', cwd=d)
    assert status==0 and out.endswith('roc.png: ROC curves\n'), err
    return d

COMPARE = 'compare qg.jets.h5 --recipes pfn_quick --seeds 2 --epochs 3 -o runs -q'.split()

def test_compare_recipes(taggers):
    assert (taggers/'roc.png').stat().st_size > 1000
    r = json.loads(here(*COMPARE, '--json', cwd=taggers)[1])
    assert r['pfn_quick']['seeds']==2 and {'multiplicity','boosted tree'} <= set(r) and r['pfn_quick']['auc'] > .7
    for line,words in ((' --recipes pfn', 'needs one store'), (' --recipes pfm -o x', 'No such recipe')):
        status,out,err = here(*f'compare qg.jets.h5{line}'.split(), cwd=taggers)
        assert status==1 and words in err

def test_predict_and_labels(taggers):
    import numpy as np
    import pandas as pd
    from jetbook.data.store import JetStore
    from jetbook.train.runs import predict
    run = 'runs/pfn_quick-0'
    assert here('predict', run, 'new.jets.h5', '-o', 'new.csv', '-q', cwd=taggers)[0]==0
    t = pd.read_csv(taggers/'new.csv')
    assert list(t)==['jet','score'] and list(t.jet)==list(range(300))
    assert np.array_equal(t.score.values.astype('f4'), predict(taggers/run, JetStore(taggers/'new.jets.h5'), progress=False))
    assert 'jetbook predict RUN STORE -o scores.csv' in here('evaluate', run, 'new.jets.h5', '--part', 'all', cwd=taggers)[2]
    assert 'already exists' in here('predict', run, 'new.jets.h5', '-o', 'new.csv', '-q', cwd=taggers)[2]
    status,out,err = here('predict', run, 'labelled.jets.h5', '-o', 'labelled.csv', '-q', '--json', cwd=taggers)
    assert (status,json.loads(out),err)==(0, dict(output='labelled.csv', jets=300, score='probability of quark'), '')
    assert list(pd.read_csv(taggers/'labelled.csv'))==['jet','score','y']

def test_predict_jets_without_labels(folder):
    "From a dense file without labels to a table of scores; evaluate sends there, and a run that is there already is said to be"
    import h5py
    import pandas as pd
    from jetbook.data.store import JetStore
    line = ('train', 'pfn_quick', 'toy.h5.jets.h5', '-o', 'runs/tagger', '--epochs', 1, '--set', 'bs=8')
    assert here('pack', 'toy.h5', '-o', 'toy.h5.jets.h5', '-q', cwd=folder)[0]==0
    assert here(*line, '-q', cwd=folder)[0]==0
    assert here(*line, cwd=folder)[1]=='runs/tagger is already trained: 1 epochs\n'
    other = jetbook(*line, '--n-train', 20, status=1, cwd=folder).stderr
    assert '  Found: n_train=None\n  Expected: --n-train 20\n' in other
    with h5py.File(folder/'toy.h5') as f, h5py.File(folder/'new.h5','w') as g:
        for k in ('X_jets','pt','m0'): g[k] = f[k][:30]
    assert 'no y: packed without labels' in here('pack', 'new.h5', '-o', 'new.jets.h5', cwd=folder)[2]
    s = JetStore(folder/'new.jets.h5')
    assert (s.layout, s.channels, sorted(s.columns))==('cms', ('Tracks','ECAL','HCAL'), ['m0','pt'])
    assert 'jetbook predict RUN STORE -o scores.csv' in here('evaluate', 'runs/tagger', 'new.jets.h5', '--part', 'all', cwd=folder)[2]
    r = jetbook('predict', 'runs/tagger', 'new.jets.h5', '-o', 'scores.csv', cwd=folder)
    assert r.stdout.startswith('scores.csv: 30 jets') and 'probability of quark' in r.stdout and 'predict: 100%' in r.stderr
    t = pd.read_csv(folder/'scores.csv')
    assert list(t)==['jet','score'] and len(t)==30 and t.score.between(0, 1).all() and not list(folder.glob('.scores*'))
    wrong = here('predict', 'runs/tagger', 'w.jets.h5', '-o', 'x.csv', cwd=folder)[2]
    assert 'No channel of that name' in wrong and not (folder/'x.csv').exists()

def test_fit_scan_search(folder):
    "A fitted detector is a bundle on its own; scores and p-values stand beside the jets; a bundle that was tampered with is refused"
    from jetbook.data.store import JetStore, toy_jets
    toy_jets(400, 'wqcd').save(folder/'more.jets.h5')
    line = ('fit', 'knn_observables', 'more.jets.h5', '--background', 'QCD', '-o', 'det')
    assert '120 jets' in jetbook(*line, cwd=folder).stdout
    assert here(*line, cwd=folder)[1]                                               # there already: the same again
    assert 'something else' in here(*line[:-1], 'det', '--set', 'k=5', cwd=folder)[2]
    top = json.loads(jetbook('scan', 'det', 'more.jets.h5', '-o', 'scan.jets.h5', '--top', 3, '--json', cwd=folder).stdout)
    s = JetStore(folder/'scan.jets.h5')
    score = s.columns['anomaly_knn_observables']
    assert len(top)==3 and max(o['score'] for o in top.values())==score.max() and 0 < s.columns['anomaly_knn_observables_p'].min() <= 1
    assert (folder/'scan.png').read_bytes()[:4]==b'\x89PNG'
    t = json.loads(jetbook('search', 'more.jets.h5', '--background', 1, '--methods', 'mean_image', '--seeds', 1, '--part', 'valid', '-o', 'search', cwd=folder, *('--json','-q')).stdout)
    assert set(t)=={'mean_image','supervised'} and 0 <= t['mean_image']['auc'] <= 1
    assert 'already exists' in here('scan', 'det', 'more.jets.h5', '-o', 'scan.jets.h5', cwd=folder)[2]
    assert 'QCD or W' in here('fit', 'mean_image', 'more.jets.h5', '--background', 'top', '-o', 'top', cwd=folder)[2]
    tamper(folder/'det', recipe='mean_image', settings={})
    assert 'another method' in here('scan', 'det', 'more.jets.h5', '-o', 'x.jets.h5', cwd=folder)[2]
    assert not (folder/'x.jets.h5').exists()

def stopped_by(monkeypatch, error):
    "A verb that raises `error`"
    def _stop(a):
        "Stop"
        raise error
    monkeypatch.setitem(VERBS, 'stop', dict(func=_stop, group='', args=(), example=''))

def test_interruptions_and_bugs(monkeypatch):
    stopped_by(monkeypatch, KeyboardInterrupt())
    assert here('stop')==(130, '', 'jetbook: interrupted\n')
    stopped_by(monkeypatch, ZeroDivisionError('a bug'))
    status,out,err = here('stop')
    assert (status,out)==(70,'') and 'ZeroDivisionError: a bug' in err       # a bug keeps its traceback
    assert err.splitlines()[-2:]==['jetbook: this is a bug in jetbook', '  Do: report it with the lines above, at https://github.com/jetbook/jetbook/issues']

def test_other_people_s_warnings_are_not_shown(monkeypatch):
    import warnings
    def _warn(a):
        "Warn"
        warnings.warn('hm')
    monkeypatch.setitem(VERBS, 'warn', dict(func=_warn, group='', args=(), example=''))
    assert here('warn')==(0,'','')

def test_interrupted(folder):
    p = start('train', 'conv_ae', 'w.jets.h5', '-o', 'runs/long', '--epochs', 5000, '-q', cwd=folder)
    until = time.time()+200
    while not (folder/'runs/long/history.csv').exists() and p.poll() is None and time.time() < until: time.sleep(.1)
    p.send_signal(signal.SIGINT)
    out,err = p.communicate(timeout=100)
    assert p.returncode==130 and 'jetbook: interrupted' in err and 'Traceback' not in err, err

def test_reader_that_goes_away(folder):
    "`jetbook recipes | true`: no complaint"
    p = start('info', 'toy.h5', cwd=folder)
    p.stdout.close()
    err = p.stderr.read()
    p.wait(timeout=100)
    assert err==''

def test_simulate(folder):
    pytest.importorskip('pythia8mc')
    jetbook('simulate', 'qg', '-n', 4, '--seed', 1, '--workers', 1, '-o', 's.jets.h5', '-q', cwd=folder)
    i = json.loads(jetbook('info', 's.jets.h5', '--json', cwd=folder).stdout)
    assert i['jets']==4 and 'Pythia 8' in i['source'] and i['columns']['y']['mean']==.5

def test_demo(tmp_path):
    r = jetbook('demo', '-o', 'out', '--jets', 200, '--epochs', 1, cwd=tmp_path)
    assert re.search(r'^HCAL, all black ', r.stdout, re.M) and r.stdout.strip().endswith('out/report.html')
    page = (tmp_path/'out/report.html').read_text(encoding='utf-8')
    assert 'simulated with Pythia 8 and a parametrised detector' in page
    assert page.count('<figure>')==10 and page.count('data:image/png;base64,')==20    # means, losses, three galleries, ROC curves, latent map, anomalies (2), compression; for light and for dark
    assert page.count('<figure>')==len(re.findall(r'<img [^>]*alt="[^"]{20,}"', page))
    assert not re.search(r'(src|srcset)="(?!data:image/png)', page)                  # nothing from elsewhere
    assert not re.search(r'href="(?!#|https://jetbook.github.io/jetbook/\w+\.html")', page) and '/conv_ae.html"' in page
    assert page.index('id="quark-or-gluon"') < page.index('id="what-the-autoencoders-learned"')
    assert re.search(r'^pack …$', r.stderr, re.M)                                    # steps are named as they begin
    assert not re.search(r'/(tmp|home|root|Users)/', page) and str(tmp_path) not in page
    for name in ('jets.jets.h5','runs/Tracks/model.safetensors'): assert (tmp_path/'out'/name).exists()
    assert not (tmp_path/'out/jets.h5').exists()                                     # large, and in the packed store bit for bit

def test_demo_leaves_other_people_s_folders_alone(tmp_path):
    (tmp_path/'thesis.tex').write_text('x')
    assert 'thesis.tex' in jetbook('demo', '-o', tmp_path, status=1).stderr
    assert [p.name for p in tmp_path.iterdir()]==['thesis.tex']
