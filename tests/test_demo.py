"The report and the demo: text that can't turn into markup, a page that loads nothing, sections and figures that follow the runs"
import html, io, re, warnings
from contextlib import redirect_stderr

import numpy as np
import pandas as pd
import pytest

from jetbook.report import Report, figure_png, fmt, html_table, text_table

# ---------------------------------------------------------------- numbers, tables, pages

@pytest.mark.parametrize('v,text', [(0,'0'), (-1234,'-1,234'), (0.,'0'), (999.96,'1000'), (1234.5,'1,234'), (1e20,'1e+20'), (float('inf'),'inf'),
    (np.int64(5),'5'), (np.nan,'–'), (np.True_,'yes'), (False,'no'), (None,'–'), ('ECAL','ECAL'), (np.float32(.5),'0.5')], ids=repr)
def test_numbers_as_people_read_them(v, text): assert fmt(v)==text

def test_text_table_aligns_numbers_right_and_text_left():
    t = pd.DataFrame(dict(n=[1,22222], name=['a','bcd'], x=[.5,None]), index=['first','2nd']).rename_axis('row')
    assert text_table(t).splitlines()==['row         n  name    x', 'first       1  a     0.5', '2nd    22,222  bcd     –']

@pytest.mark.parametrize('names', [dict(index=['<i>']), dict(columns=['<b>']), {}])
def test_html_table_escapes_everything(names):
    t = html_table(pd.DataFrame([['<script>x</script>']], **names).rename_axis('<u>'))
    assert '&lt;script&gt;' in t and '&lt;u&gt;' in t and not re.search('<(script|i|b|u)>', t)

def test_a_page_with_hostile_text(tmp_path):
    r = Report('a <b> & c', '[a<b](https://x.org/y.html#z) [c](javascript:alert) [d](https://x"y)', 'made by `<x>`')
    r.add('One & two', 'one `a<b` two\n\nthree', facts={'<f>':'<v>'}, table=pd.DataFrame({'<t>':[1]})).add('', 'continued').add('Three', command='jetbook info "a b" <c>')
    page = r.save(tmp_path/'p.html').read_text(encoding='utf-8')
    body = page.split('</style>')[1]
    assert '<title>a &lt;b&gt; &amp; c</title>' in page and '<a href="#one-two">One &amp; two</a>' in body and '<section id="one-two">' in body
    assert '<p>one <code>a&lt;b</code> two</p>' in body and '<p>three</p>' in body
    assert '<a href="https://x.org/y.html#z">a&lt;b</a>' in body and '[c](javascript:alert)' in body and '[d](https://' in body
    assert body.count('<section')==2 and body.count('<a ')==3 and 'href="javascript' not in body
    assert 'jetbook info &#34;a b&#34; &lt;c&gt;' in body and '{' not in body and not re.search('<(b|f|v|t|x|c)>', body)
    assert not re.search(r'(src|href)="(?!data:|#|https://x.org)', page) and 'url(' not in page and '@import' not in page and '<script' not in page

def test_pictures_have_descriptions_and_both_inks(tmp_path):
    import matplotlib.pyplot as plt
    fig,ax = plt.subplots(figsize=(3,2))
    ax.plot([0,1], c='C1', label='one'); ax.plot([1,0], 'k--', label='two'); ax.legend(); ax.set_title('a title')
    red = ax.text(.5, .5, 'red', color='#cc0000')
    dark,light = figure_png(fig, 'dark'),figure_png(fig)
    assert dark!=light
    assert [o.get_color() for o in (ax.title, red, *ax.lines, ax.get_legend().get_lines()[1])]==['#1d2430','#cc0000','C1','#1d2430','#1d2430']
    page = Report('x').add('y', fig=fig, alt='a "rising" line').save(tmp_path/'p.html').read_text()
    assert 'alt="a &#34;rising&#34; line" width="288" height="192"' in page and page.count('data:image/png;base64,')==2
    plt.close(fig)

def test_a_failed_save_leaves_the_old_page(tmp_path):
    Report('old').save(tmp_path/'p.html')
    r = Report('new'); r.sections = [('h', [dict(facts={'x':object})])]; r.lead = None
    with pytest.raises(Exception): r.save(tmp_path/'p.html')
    assert '<title>old</title>' in (tmp_path/'p.html').read_text() and [p.name for p in tmp_path.iterdir()]==['p.html']

# ---------------------------------------------------------------- the demo

@pytest.fixture(scope='module')
def ran(tmp_path_factory):
    "A demo of 200 jets and one epoch: its folder and what it gave"
    from jetbook.demo import demo
    out = tmp_path_factory.mktemp('demo')/'demo'
    return out,demo(out, jets=200, epochs=1, progress=False)

CHANNELS = 'Tracks','ECAL','HCAL'

def test_scores_are_those_of_the_runs(ran):
    from jetbook.train.runs import Run
    out,d = ran
    for c in CHANNELS:
        r = Run(out/'runs'/c); m = r.metrics['test']
        assert len(r.metrics['test_reads'])==1                       # the test part was read once
        assert (d.scores['MSE'][c], d.scores['bright F1'][c], d.scores['pT bias'][c])==(m['mse'], m[f'f1_{c}'], m['pt_bias'])
        black = d.scores.loc[f'{c}, all black']
        assert abs(black['MSE']-m['mse_black']) < 1e-9 and abs(black['pT bias']-1) < 1e-4 and black['bright recall']==0
        assert .5 < d.scores['weighted MSE'][c]/r.history.valid_loss.iloc[-1] < 1.5   # another part of the same jets
    m = Run(out/'runs/pfn_quick').metrics['test']
    assert abs(d.taggers.loc['pfn_quick','auc']-m['auc']) < 1e-9 and d.taggers.loc['pfn_quick','accuracy']==m['accuracy']
    assert {'boosted tree','multiplicity'} <= set(d.taggers.index)

def test_scoring_again_gives_the_same(ran):
    from jetbook.data.store import JetStore
    from jetbook.demo import beside_black
    out,d = ran
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')                              # that the test part is read again
        again = beside_black(out/'runs/HCAL', JetStore(out/'jets.jets.h5'))
    pd.testing.assert_frame_equal(again, d.scores.loc[again.index])

def test_the_page(ran):
    from jetbook.demo import _site, _verdict
    out,d = ran
    page = d.report.read_text(encoding='utf-8')
    assert re.findall('<h2>(.*?)</h2>', page)==['The file', 'The jets', 'Quark or gluon?', 'Which jets are anomalous?', 'How many bytes a jet takes', 'A map of jets',
        'What the autoencoders learned', *(f'{c}: in and out' for c in CHANNELS), 'What it took']
    assert 'are not CMS data' in page and fmt(d.scores['weighted MSE']['HCAL']) in page and html.escape(_verdict(d.scores, CHANNELS)) in page
    assert not (out/'jets.h5').exists() and f'The dense file, {200*187.5e3/1e6:,.0f} MB, was deleted' in page
    text = re.sub(r'data:image/png;base64,[^"]*', '', page.split('</style>')[1])
    assert 'nan' not in text and '{' not in text
    linked = re.findall(re.escape(_site('', '')[3:-6])+r'(\w+)\.html"', page)
    assert {'conv_ae','sparse_ae'} <= set(linked) and len(linked)==len(re.findall('href="http', page))

def test_the_verdict_follows_the_numbers():
    from jetbook.demo import _and, _saved, _verdict
    rows = lambda mse, bias: pd.DataFrame({'MSE':mse, 'pT bias':bias}, index=['A','A, all black','B','B, all black'])
    assert _verdict(rows((2,1,1,2), (-25,1,.1,1)), 'AB').endswith('in plain MSE they are worse than an all-black image on A, and up to 26 times the momentum that went in comes out.')
    assert 'worse than an all-black image on A and B, and as little as 0% of the momentum' in _verdict(rows((2,1,3,2), (1,1,.1,1)), 'AB')
    assert _verdict(rows((1,2,1,2), (-.1,1,.1,1)), 'AB').startswith('The copies beat')
    assert _and(list('ABC'))=='A, B and C' and _and(['A'])=='A'
    saved = lambda a: _saved(pd.DataFrame({'learned code, bytes':[a], 'counted frequencies, bytes':[40]}))
    assert '10% fewer' in saved(36) and '25% more' in saved(50) and 'too short' in saved(50)

def test_a_gallery_shows_the_middle_of_the_window(ran):
    import matplotlib.pyplot as plt
    from jetbook.data.store import JetStore
    from jetbook.demo import gallery
    out,_ = ran
    fig = gallery(out/'runs/HCAL', JetStore(out/'jets.jets.h5'))
    assert np.allclose([a.get_xlim()[1] for a in fig.axes[:10]], 125/4*.0174)
    plt.close(fig)

def test_mean_images_are_means():
    import matplotlib.pyplot as plt
    from jetbook.data.hdf5 import sample
    from jetbook.demo import mean_jets
    one = sample('qg'); one = one.select([int(np.flatnonzero(one.columns['y']==c)[0]) for c in (1,0)])
    fig = mean_jets(one)
    for k,a in enumerate(fig.axes[:6]): assert np.array_equal(np.nan_to_num(a.images[0].get_array().filled(np.nan)), one.images([k//3])[0,k%3].numpy())
    assert [a.get_title() for a in fig.axes[:6:3]]==['quark, Tracks','gluon, Tracks']
    plt.close(fig)

def test_the_demo_keeps_to_its_own_folder(tmp_path):
    from jetbook.data.store import ConfigError
    from jetbook.demo import _own_folder, demo
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/thesis.tex').touch()
    with pytest.raises(ConfigError, match='thesis.tex'): _own_folder(tmp_path/'mine')
    with pytest.raises(ConfigError, match='is a file'): _own_folder(tmp_path/'mine/thesis.tex')
    assert (tmp_path/'mine/thesis.tex').exists()
    d = _own_folder(tmp_path/'own/folder')
    (tmp_path/'mine/config.json').touch()
    (d/'elsewhere').symlink_to(tmp_path/'mine')
    mine = [d/'notes.txt', d/'config.json', d/'runs/ECAL/notes.txt', d/'elsewhere/config.json']
    ours = [d/'jets.jets.h5', d/'report.html', d/'runs/ECAL/config.json', d/'runs/ECAL/model.safetensors', d/'runs/ECAL/jets.safetensors', d/'runs/ECAL/checkpoint/last.safetensors', d/'search/QCD/mean-0/run/history.csv', d/'search/QCD/search.json']
    for p in mine+ours: p.parent.mkdir(parents=True, exist_ok=True); p.touch()
    (d/'runs/linked').symlink_to(tmp_path/'mine')
    assert sorted(p.name for p in _own_folder(d).iterdir())==['.jetbook-demo','config.json','elsewhere','notes.txt','runs']
    assert all(p.exists() for p in mine) and not any(p.exists() for p in ours) and (d/'runs/linked').is_symlink()
    with pytest.raises(ConfigError, match='cannot use that many'): demo(tmp_path/'demo2', jets=5)
    assert not (tmp_path/'demo2').exists()

def test_two_demos_do_not_share_a_folder(tmp_path):
    from jetbook.data.paths import InUse, locked
    from jetbook.demo import demo
    with locked(tmp_path/'demo') as d:
        with pytest.raises(InUse): demo(d, jets=20)
        assert [p.name for p in d.iterdir()]==['.jetbook.lock']

def test_steps_are_named_and_timed(tmp_path):
    from jetbook.demo import _Steps
    with redirect_stderr(io.StringIO()) as said:
        for progress in (True,False):
            s = _Steps(tmp_path/'x', 1, 0, progress)
            with s.step(f'step {progress}'): pass
    assert said.getvalue()=='step True …\n' and list(s.seconds)==['step False']
