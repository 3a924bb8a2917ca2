"Odd command lines, one after the other in one process: the right exit status, what to do about it, and never a traceback"
import contextlib
import io
import os
import shlex
import subprocess
import sys

import pytest

from jetbook.cli import VERBS, main


def here(line, cwd):
    "(status, output, errors) of a command line"
    from fastcore.xtras import working_directory

    out, err = io.StringIO(), io.StringIO()
    with working_directory(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(shlex.split(line)[1:])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Stores, a dense file, a tagger, an autoencoder, a detector, a text and somebody's thesis"
    import jetbook.data.files  # gives stores `to_dense`
    from jetbook.data.store import toy_jets

    d = tmp_path_factory.mktemp('odd')
    toy_jets(60).save(d / 'cms.jets.h5')
    toy_jets(60).to_dense(d / 'cms.h5')
    toy_jets(120, 'wqcd').save(d / 'w.jets.h5')
    (d / 'text.h5').write_text('these are no jets')
    (d / 'thesis').mkdir()
    (d / 'thesis/thesis.tex').write_text('x')
    for line in (
        'jetbook train pfn_quick cms.jets.h5 -o tagger --epochs 1 --set bs=8 -q',
        'jetbook train conv_ae w.jets.h5 -o ae --epochs 1 --set bs=16 -q',
        'jetbook evaluate tagger cms.jets.h5 -q',
        'jetbook fit mean_image w.jets.h5 --background QCD -o det -q',
    ):
        status, _, err = here(line, d)
        assert status == 0, err
    return d


WRONG_USAGE = """
jetbook | lists
jetbook paint | expected one of info, verify
jetbook pakc cms.h5 | did you mean pack?
jetbook -x | unrecognized argument: -x
jetbook info | required: FILE
jetbook info "" | An argument is empty: file
jetbook info cms.h5 --jason | did you mean --json?
jetbook info cms.h5 w.jets.h5 | has no argument w.jets.h5
jetbook info cms.h5 -n 0 | not a whole number, 1 or more
jetbook info cms.h5 -n -5 | not a whole number, 1 or more
jetbook info cms.h5 -n 1e3 | not a whole number, 1 or more
jetbook info cms.h5 -n 99999999999999999999 | at most
jetbook info cms.h5 -n 99999999999999999999999999 | not a whole number
jetbook info cms.h5 --against "" | An argument is empty: against
jetbook pack cms.h5 | required: -o
jetbook pack cms.h5 "" -o x.jets.h5 | An argument is empty: source
jetbook pack cms.h5 -o "" | An argument is empty: output
jetbook pack cms.h5 -o x.jets.h5 --towers 0 | 1 or more
jetbook pack cms.h5 -o x.jets.h5 --towers many | not a whole number
jetbook pack cms.h5 -o x.jets.h5 --negative maybe | expected one of raise, zero, keep
jetbook simulate qg -n 0 -o x.jets.h5 | 1 or more
jetbook simulate qg -n 3.5 -o x.jets.h5 | not a whole number
jetbook simulate qg -n -2 -o x.jets.h5 | 1 or more
jetbook simulate qg -n 2 --seed -1 -o x.jets.h5 | 0 or more
jetbook simulate qg -n 2 --workers 0 -o x.jets.h5 | 1 or more
jetbook export-dense w.jets.h5 -n 0 -o x.h5 | 1 or more
jetbook recipes "" | An argument is empty: name
jetbook train "" w.jets.h5 -o x | An argument is empty: recipe
jetbook train conv_ae w.jets.h5 -o "" | An argument is empty: output
jetbook train conv_ae w.jets.h5 -o x --channels "" | An argument is empty: channels
jetbook train conv_ae w.jets.h5 -o x --lr 0 | not a number greater than 0
jetbook train conv_ae w.jets.h5 -o x --lr -1 | not a number greater than 0
jetbook train conv_ae w.jets.h5 -o x --lr nan | not a number greater than 0
jetbook train conv_ae w.jets.h5 -o x --lr inf | not a number greater than 0
jetbook train conv_ae w.jets.h5 -o x --lr fast | not a number greater than 0
jetbook train conv_ae w.jets.h5 -o x --epochs 0 | 1 or more
jetbook train conv_ae w.jets.h5 -o x --epochs 10000000000000000000 | at most 1,000,000
jetbook train conv_ae w.jets.h5 -o x --seed -1 | 0 or more
jetbook train conv_ae w.jets.h5 -o x --seed 99999999999999 | at most
jetbook train conv_ae w.jets.h5 -o x --split-seed x | not a whole number
jetbook train conv_ae w.jets.h5 -o x --valid 1.5 | not a fraction
jetbook train conv_ae w.jets.h5 -o x --test -0.1 | not a fraction
jetbook train conv_ae w.jets.h5 -o x --n-train 0 | 1 or more
jetbook evaluate tagger cms.jets.h5 --part future | expected one of test, valid
jetbook compare tagger --part future | expected one of test, valid
jetbook compare tagger --plot x.exe | does not end in .png
jetbook compare tagger --plot x | does not end in .png
jetbook compare tagger --plot thesis/ | does not end in .png
jetbook compare tagger --plot - | does not end in .png
jetbook compare cms.jets.h5 --recipes pfn_quick -o x --seeds 0 | 1 or more
jetbook compress ae w.jets.h5 -o x.jetz --step 0 | greater than 0
jetbook compress ae w.jets.h5 -o x.jetz --step nan | greater than 0
jetbook compress ae w.jets.h5 -o x.jetz --block 0 | 1 or more
jetbook decompress x.jetz -o x.jets.h5 | required: -m
jetbook scan det w.jets.h5 -o x.jets.h5 --top 0 | 1 or more
jetbook search w.jets.h5 -o x | required: --background
jetbook search w.jets.h5 --background QCD --seeds 0 -o x | 1 or more
jetbook search w.jets.h5 --background QCD --plot x.exe -o x | does not end in .png
jetbook demo -o x --jets 0 | 1 or more
jetbook demo -o x --epochs 0 | 1 or more
jetbook demo -o x --lr -1 | greater than 0
"""

ERRORS = """
jetbook info - | No such file
jetbook info nothing.h5 | No such file
jetbook info text.h5 | text
jetbook info thesis | thesis
jetbook info tagger | tagger
jetbook info sample: | qg
jetbook info sample:QG | qg
jetbook info cms.h5 --against higgs | No such sample
jetbook info cms.h5 --against nothing.h5 | No such file
jetbook verify cms.h5 | pack it first
jetbook verify thesis | thesis is a folder
jetbook verify cms.jets.h5 text.h5 -q | text
jetbook verify cms.jets.h5 w.jets.h5 -q | w.jets.h5
jetbook verify cms.jets.h5 cms.h5 --layout lagan -q | image
jetbook verify cms.jets.h5 cms.h5 --channels A,B -q | channels
jetbook pack nothing.h5 -o x.jets.h5 -q | No such file
jetbook pack cms.jets.h5 -o x.jets.h5 -q | packed already
jetbook pack thesis -o x.jets.h5 -q | thesis
jetbook pack cms.h5 -o - -q | No name for the output
jetbook pack cms.h5 -o cms.h5 --overwrite -q | being read
jetbook pack cms.h5 -o thesis --overwrite -q | is a folder
jetbook pack cms.h5 -o /dev/null --overwrite -q | is a device
jetbook pack cms.h5 -o text.h5/x.jets.h5 -q | where a folder is needed
jetbook pack cms.h5 -o x.jets.h5 --layout vase -q | cms
jetbook pack cms.h5 -o x.jets.h5 --label nothing -q | nothing
jetbook pack cms.h5 -o x.jets.h5 --channels a,a,a -q | different names
jetbook pack cms.h5 -o x.jets.h5 --channels a,b,c,d -q | channels
jetbook pack cms.h5 -o x.jets.h5 --channels ,, -q | a store cannot hold
jetbook simulate top -n 2 -o x.jets.h5 | qg
jetbook simulate qg -n 100000000000000 -o x.jets.h5 | memory
jetbook sample higgs -o x.jets.h5 | qg
jetbook sample qg -o w.jets.h5 | pass --overwrite
jetbook sample qg -o thesis | is a folder
jetbook export-dense text.h5 -o x.h5 | text
jetbook export-dense w.jets.h5 -o w.jets.h5 --overwrite | being read
jetbook recipes nothing | No such recipe
jetbook detectors conv_ae | Expected: anomaly
jetbook train conv_ae w.jets.h5 -o x --set store=3 | no such setting
jetbook train conv_ae w.jets.h5 -o x --set epochs=3 | use the option --epochs
jetbook train conv_ae w.jets.h5 -o x --set noequals | name=value
jetbook train conv_ae w.jets.h5 -o x --set =3 | no such setting
jetbook train conv_ae w.jets.h5 -o x --set bs= | Expected: int
jetbook train conv_ae w.jets.h5 -o x --set bs=0 | bs
jetbook train conv_ae w.jets.h5 -o x --set bs=NaN | Expected: int
jetbook train conv_ae w.jets.h5 -o x --set bs=[1,2] | Expected: int
jetbook train conv_ae w.jets.h5 -o x --set loss=mean | 'weighted' or 'mse'
jetbook train conv_ae w.jets.h5 -o x --schedule never | one_cycle
jetbook train conv_ae w.jets.h5 -o x --valid .6 --test .6 | No jets are left
jetbook train conv_ae w.jets.h5 -o x --n-train 999999 | out of range
jetbook train conv_ae w.jets.h5 -o x --channels ECAL | ECAL
jetbook train conv_ae w.jets.h5 -o thesis | thesis.tex
jetbook train conv_ae w.jets.h5 -o text.h5 | is a file
jetbook train conv_ae w.jets.h5 -o - | No name for the output
jetbook train conv_ae w.jets.h5 -o /dev/null | is a device
jetbook train conv_ae w.jets.h5 -o ae --epochs 2 | another run
jetbook train conv_ae text.h5 -o x | text
jetbook train conv_ae cms.h5 -o x | pack it first
jetbook train gcn cms.jets.h5 -o x --set k=0 --epochs 1 -q | out of range
jetbook evaluate tagger | name the store
jetbook evaluate tagger w.jets.h5 | not trained on this store
jetbook evaluate tagger cms.jets.h5 --part all | --part test
jetbook evaluate thesis cms.jets.h5 | is this a run folder?
jetbook evaluate cms.jets.h5 cms.jets.h5 | cms.jets.h5
jetbook predict tagger cms.jets.h5 -o - --json -q | leave out one of them
jetbook predict tagger w.jets.h5 -o x.csv -q | No channel of that name
jetbook predict tagger cms.jets.h5 -o cms.jets.h5 --overwrite -q | being read
jetbook predict tagger cms.jets.h5 -o thesis -q | is a folder
jetbook predict ~/no-such-run cms.jets.h5 -o x.csv -q | no-such-run
jetbook compare thesis | is this a run folder?
jetbook compare cms.jets.h5 | cms.jets.h5
jetbook compare cms.jets.h5 --recipes conv_ae -o x | Expected: classify
jetbook compare cms.jets.h5 --recipes knn_observables -o x | Expected: classify
jetbook compare cms.jets.h5 --recipes pfn_quick,conv_ae -o x | Expected: classify
jetbook compare cms.jets.h5 --recipes , -o x | No such recipe
jetbook compare cms.jets.h5 --recipes pfn_quick -o text.h5 -q | where a folder is needed
jetbook compare cms.jets.h5 --recipes pfn_quick -o x --valid .9 --test .9 -q | No jets are left
jetbook compare cms.jets.h5 w.jets.h5 --recipes pfn_quick -o x | one store
jetbook compress tagger cms.jets.h5 -o x.jetz -q | pixel_code
jetbook compress thesis cms.jets.h5 -o x.jetz -q | is this a run folder?
jetbook compress ae w.jets.h5 -o x.jetz --block 99999999 -q | out of range
jetbook decompress text.h5 -m ae -o x.jets.h5 -q | not a compressed file
jetbook decompress nothing.jetz -m ae -o x.jets.h5 -q | No such file
jetbook fit conv_ae w.jets.h5 -o x | Expected: anomaly
jetbook fit nothing w.jets.h5 -o x | No such recipe
jetbook fit mean_image w.jets.h5 --background top -o x | QCD or W
jetbook fit mean_image w.jets.h5 --mixture w.jets.h5 -o x | leave it out
jetbook fit surrogates w.jets.h5 --set store=3 -o x | no such setting
jetbook fit surrogates w.jets.h5 --set seed=3 -o x | use the option --seed
jetbook fit observable w.jets.h5 --set column=image -o x | No such observable
jetbook fit cwola w.jets.h5 -o x | CWoLa compares two samples
jetbook scan tagger cms.jets.h5 -o x.jets.h5 | not an autoencoder
jetbook scan det w.jets.h5 -o thesis | is a folder
jetbook search w.jets.h5 --background top -o x | QCD or W
jetbook search w.jets.h5 --background QCD --methods nothing -o x | No such recipe
jetbook search w.jets.h5 --background QCD --methods mean_image --n-train 1 --seeds 1 -o x -q | Too few
jetbook info /dev/null | /dev/null
jetbook train dense_vae cms.jets.h5 -o x | 1 channel
jetbook train dirichlet_vae cms.jets.h5 -o x | 1 channel
jetbook train latent_ae cms.jets.h5 -o x | 1 channel
jetbook train remapped_ae cms.jets.h5 -o x | 1 channel
jetbook train normalised_ae cms.jets.h5 -o x | 1 channel
jetbook train nae cms.jets.h5 -o x | jetbook fit nae
jetbook train sage_r2 cms.jets.h5 -o x --set layers=0 | out of range
jetbook train particle_transformer cms.jets.h5 -o x --set layers=1000000 | out of range
jetbook train particle_transformer cms.jets.h5 -o x --set heads=7 | heads
jetbook train particle_net cms.jets.h5 -o x --set widths=[] | widths
jetbook train dense_vae w.jets.h5 -o x --set power=-1 | power
jetbook train conv_ae w.jets.h5 -o x --set channels=[] | channels
jetbook train ensemble cms.jets.h5 -o x --set members=[] | members
jetbook fit mean_image w.jets.h5 -o x --set power=-1 | power
jetbook fit surrogates w.jets.h5 -o x --set trees=0 | trees
jetbook fit gmm_observables w.jets.h5 -o x --set columns=[] | columns
jetbook fit pca w.jets.h5 -o x --set n_components=100000 | out of range
jetbook fit knn_observables w.jets.h5 -o x --set k=0 | out of range
jetbook fit mean_image w.jets.h5 -o thesis | thesis.tex
jetbook scan det w.jets.h5 -o x.jets.h5 --top 100000 | 1 to 100
jetbook scan det w.jets.h5 -o w.jets.h5 --overwrite | being read
jetbook demo -o thesis | another folder
jetbook demo -o text.h5 | folder
jetbook demo -o x --jets 1 | 20 to 20,000
"""

FINE = """
jetbook --help | usage: jetbook
jetbook --version | jetbook
jetbook info cms.h5 -n 1 --json | "jets": 60
jetbook export-dense w.jets.h5 -n 999999 -o many.h5 -q | 120 jets
jetbook predict tagger cms.jets.h5 -o - -q | jet,score,y
jetbook compare tagger tagger ae --plot a.PDF | a.PDF: ROC curves
jetbook recipes conv_ae --json | conv_ae
"""

def lines(text):
    return [tuple(o.strip() for o in line.split(' | ')) for line in text.strip().splitlines()]


def test_there_are_enough():
    "Every verb is among them"
    every = [line for text in (WRONG_USAGE, ERRORS, FINE) for line, _ in lines(text)]
    assert len(every) >= 125 and len(set(every)) == len(every)
    assert {line.split()[1] for line in every if len(line.split()) > 1} >= set(VERBS)


def _files(d):
    return {str(p.relative_to(d)): p.stat().st_mtime_ns for p in d.rglob('*')}


@pytest.mark.parametrize('line,words', lines(WRONG_USAGE))
def test_wrong_usage(folder, line, words):
    before = _files(folder)
    status, out, err = here(line, folder)
    assert (status, out) == (2, '') and (words in err or line == 'jetbook') and 'Traceback' not in err, err
    assert _files(folder) == before  # nothing was begun


@pytest.mark.parametrize('line,words', lines(ERRORS))
def test_errors(folder, line, words):
    before = _files(folder)
    status, out, err = here(line, folder)
    assert 'Traceback' not in err, err
    assert status == 1 and words in err and 'jetbook: ' in err, (status, err)
    assert any(f'\n  {k}: ' in err for k in ('Found', 'Expected', 'Do'))
    assert _files(folder) == before  # nothing was made, nothing touched


@pytest.mark.parametrize('lr', ['1e9', '1e30'])
def test_a_training_that_diverges(folder, lr):
    status, out, err = here(f'jetbook train pfn_quick cms.jets.h5 -o lr{lr} --lr {lr} --epochs 1 --set bs=8 -q', folder)
    assert (status, out) == (1, '') and 'diverged' in err and 'smaller' in err and 'Traceback' not in err


@pytest.mark.parametrize('line,words', lines(FINE))
def test_fine(folder, line, words):
    status, out, err = here(line, folder)
    assert status == 0 and words in out and 'Traceback' not in err, err


def raising(monkeypatch, error):
    "A verb that raises `error`"

    def _stop(a):
        "Stop"
        raise error

    monkeypatch.setitem(VERBS, 'stop', dict(func=_stop, group='', args=(), example=''))


OutOfMemoryError = type('OutOfMemoryError', (RuntimeError,), {})  # as torch's, without importing it


@pytest.mark.parametrize(
    'error,words',
    [
        (MemoryError('Unable to allocate 7.00 TiB'), 'There is not enough memory'),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 'not enough memory'),
        (OutOfMemoryError('CUDA out of memory. Tried to allocate 7 TiB'), 'not enough memory'),
        (ModuleNotFoundError("No module named 'h5py'", name='h5py'), 'The package h5py cannot be imported'),
        (OSError(28, 'No space left on device'), 'no space is left'),
        (PermissionError(13, 'Permission denied', 'their.h5'), 'their.h5 may not be accessed'),
        (OSError('something of a library'), 'something of a library'),
    ],
)
def test_errors_of_the_machine_are_no_bugs(monkeypatch, tmp_path, error, words):
    raising(monkeypatch, error)
    status, out, err = here('jetbook stop', tmp_path)
    assert (status, out) == (1, '') and words in err and 'Traceback' not in err
    assert 'Traceback' in here('jetbook stop --debug', tmp_path)[2]


@pytest.mark.parametrize('error', [ValueError('x'), KeyError('x'), ImportError('x', name='jetbook.data')])
def test_a_bug_says_that_it_is_one(monkeypatch, tmp_path, error):
    raising(monkeypatch, error)
    status, out, err = here('jetbook stop', tmp_path)
    assert (status, out) == (70, '') and 'Traceback' in err and 'this is a bug in jetbook' in err


def test_control_characters_do_not_reach_the_terminal(monkeypatch, tmp_path):
    "Neither from errors, nor from warnings, nor from the names of files and columns"
    from jetbook.data.store import DataError

    raising(monkeypatch, DataError('\x1b[2J', found='a\rb', do='\u202ereverse'))
    err = here('jetbook stop', tmp_path)[2]
    assert '\x1b' not in err and '\r' not in err and '\u202e' not in err and r'\x1b[2J' in err
    err = here("jetbook info '\x1b[31m.h5'", tmp_path)[2]
    assert '\x1b' not in err


def command(*args, redirect='', **env):
    "A process of its own, in a shell that redirects its output"
    line = shlex.join([sys.executable, '-m', 'jetbook.cli', *args])
    return subprocess.run(
        f'{line} {redirect}', shell=True, env={**os.environ, **env}, capture_output=True, timeout=100
    )


@pytest.mark.parametrize('encoding', ['ascii', 'cp437', 'cp1252'])
def test_terminals_that_lack_characters(encoding):
    r = command('train', '--help', PYTHONIOENCODING=encoding)
    assert r.returncode == 0 and r.stderr == b''
    assert ('A,B,...' if encoding != 'cp1252' else 'A,B,…') in r.stdout.decode(encoding)
    r = command('recipes', '--json', PYTHONIOENCODING=encoding)
    assert r.returncode == 0 and r.stdout.decode(encoding).rstrip().endswith('}')
    r = command('info', 'τ\udcff.h5', PYTHONIOENCODING=encoding)
    assert r.returncode == 1 and b'No such file' in r.stderr


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_output_that_cannot_be_written():
    r = command('recipes', 'conv_ae', redirect='> /dev/full')
    assert r.returncode == 1 and b'no space is left' in r.stderr and b'Traceback' not in r.stderr
    r = command('--help', redirect='> /dev/full')
    assert b'Exception ignored' not in r.stderr
    r = command('recipes', 'conv_ae', redirect='>&-')
    assert (r.returncode, r.stderr) == (0, b'')
    r = command('--help', redirect='| true')
    assert r.stderr == b''


def test_what_a_shell_may_have_left_to_do(monkeypatch, tmp_path):
    "`~` everywhere, `*` on Windows"
    from jetbook import cli

    monkeypatch.setenv('HOME', str(tmp_path))
    for name in ('b.h5', 'a.h5'):
        (tmp_path / name).touch()
    assert cli._expand('~/a.h5') == f'{tmp_path}/a.h5'
    assert cli._expand(['~', 'a~b', 3, None]) == [str(tmp_path), 'a~b', 3, None]
    assert cli._expand([f'{tmp_path}/*.h5']) == [f'{tmp_path}/*.h5']
    monkeypatch.setattr(cli.os, 'name', 'nt')
    assert cli._expand([f'{tmp_path}/*.h5', '*.none', 'x=*']) == [
        f'{tmp_path}/a.h5',
        f'{tmp_path}/b.h5',
        '*.none',
        'x=*',
    ]
    monkeypatch.undo()
    monkeypatch.setenv('HOME', str(tmp_path))
    status, _, err = here('jetbook sample wqcd --output=~/w.jets.h5', tmp_path)
    assert status == 0 and (tmp_path / 'w.jets.h5').exists(), err


def test_a_picture_that_fails_does_not_cost_the_table(folder, monkeypatch):
    from matplotlib.figure import Figure

    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Figure, 'savefig', fail)
    status, out, err = here('jetbook compare tagger --plot b.png', folder)
    assert status == 1 and 'valid_loss' in out and 'no space is left' in err
    assert not (folder / 'b.png').exists()


def test_scores_on_standard_output(folder):
    "`-` is standard output: the table and nothing else"
    import pandas as pd

    status, out, err = here('jetbook predict tagger cms.jets.h5 -o -', folder)
    t = pd.read_csv(io.StringIO(out))
    assert status == 0 and list(t) == ['jet', 'score', 'y'] and len(t) == 60 and '\r' not in out
    assert not (folder / '-').exists()
