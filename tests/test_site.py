"""The built site in a real browser, at the width of a phone and in the dark.

    make docs && pytest tests/test_site.py          the site in _docs/
    JETBOOK_SITE=/some/folder pytest tests/test_site.py

Needs Chromium and playwright; without one of them, or without a site, the tests are skipped and say so.
"""
import functools, http.server, importlib.util, os, shutil, threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = Path(os.environ.get('JETBOOK_SITE', ROOT/'_docs')).resolve()
PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob('*.html') if '_static' not in p.parts)
BROWSER = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome','google-chrome-stable'))), None)
PHONE = dict(width=390, height=844)

if not (SITE/'index.html').exists(): pytest.skip(f'no site in {SITE}: make docs', allow_module_level=True)

def test_every_link_leads_somewhere():
    spec = importlib.util.spec_from_file_location('docs_links', ROOT/'docs'/'links.py')
    links = importlib.util.module_from_spec(spec); spec.loader.exec_module(links)
    assert list(links.problems(SITE))==[]

class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='session')
def url():
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(_Quiet, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown(); server.server_close()

@pytest.fixture(scope='session')
def browser():
    sync = pytest.importorskip('playwright.sync_api', reason="playwright is not installed: pip install '.[dev]'")
    if not BROWSER: pytest.skip('no Chromium on this machine (Debian: apt install chromium)')
    with sync.sync_playwright() as p:
        b = p.chromium.launch(executable_path=BROWSER, args=['--no-sandbox','--disable-gpu'])
        yield b
        b.close()

@pytest.fixture(scope='session')
def phone(browser):
    with browser.new_context(viewport=PHONE) as c: yield c

@pytest.fixture(scope='session')
def dark(browser):
    with browser.new_context(viewport=dict(width=1400, height=1000), color_scheme='dark') as c: yield c

# what a page says of itself once its equations are set and its pictures are there
SAYS = """async () => {
  if (window.MathJax && MathJax.startup && MathJax.startup.promise) await MathJax.startup.promise
  const imgs = [...document.querySelectorAll('article img')]
  imgs.forEach(i => i.loading = 'eager')
  await Promise.all(imgs.map(i => i.complete || new Promise(r => { i.onload = i.onerror = r })))
  const all = s => [...document.querySelectorAll(s)]
  const prose = document.querySelector('article').cloneNode(true)
  prose.querySelectorAll('pre,code,mjx-container,script,style').forEach(o => o.remove())
  return {
    title: document.title,
    h1: all('article h1').map(o => o.textContent.trim()),
    directives: all('pre').map(o => o.textContent).filter(t => /^#\\s*\\|/m.test(t)),
    raw: prose.textContent.match(/\\$\\$|:::|```|\\{(term|figure|picture|toctree|py:)|\\| *(---|—)/g) || [],
    equations: all('.math').length,
    unset: all('.math').filter(o => !o.querySelector('mjx-container')).map(o => o.textContent),
    wrong: all('mjx-merror, [data-mml-node="merror"]').map(o => o.textContent),
    unnamed: imgs.filter(i => !(i.alt || '').trim()).map(i => i.src),
    missing: imgs.filter(i => !i.naturalWidth).map(i => i.src),
    wide: imgs.filter(i => i.getBoundingClientRect().right > innerWidth + 1 && !i.closest('.table-wrapper')).map(i => i.src),
    overflow: document.documentElement.scrollWidth - innerWidth}
}"""

def opened(context, where):
    "A page of the site, and what went wrong on it"
    page,wrong = context.new_page(),[]
    page.on('console', lambda m: wrong.append(m.text) if m.type=='error' else None)
    page.on('pageerror', lambda e: wrong.append(str(e)))
    page.on('requestfailed', lambda r: wrong.append(f'{r.url}: {r.failure}'))
    page.on('request', lambda r: None if r.url.startswith(('http://127.0.0.1','data:','blob:')) else wrong.append(f'not of this site: {r.url}'))
    page.goto(where, wait_until='load')
    return page,wrong

offline = (SITE/'_static'/'tex-svg.js').exists()

@pytest.mark.parametrize('name', PAGES)
def test_page(name, url, phone):
    page,wrong = opened(phone, url+name)
    try: said = page.evaluate(SAYS)
    finally: page.close()
    if not offline: # made where there is no npm: equations come from a CDN
        wrong = [w for w in wrong if 'mathjax' not in w and 'ERR_' not in w]
        said['unset'] = []
    assert wrong==[]
    assert said['title']
    if name!='search.html': assert len(said['h1'])==1 and said['h1'][0], said['h1'] # Sphinx's own page has none
    bad = {k:said[k] for k in ('directives','raw','unset','wrong','unnamed','missing','wide') if said[k]}
    assert bad=={}
    assert said['overflow']<=0, f"{said['overflow']} pixels wider than a phone"

def test_there_are_equations_and_pictures(url, phone):
    page,_ = opened(phone, url+'losses.html')
    said = page.evaluate(SAYS)
    assert said['equations'] > 5 and page.locator('article img').count() > 5
    page.close()

CONTRAST = """sel => {
  const lum = c => { const [r,g,b] = c.match(/[\\d.]+/g).slice(0,3).map(v => v/255).map(v => v <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4); return .2126*r+.7152*g+.0722*b }
  const under = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$|transparent/.test(c)) return c } return 'rgb(255,255,255)' }
  return [...document.querySelectorAll(sel)].filter(e => e.textContent.trim() && e.offsetParent).slice(0,400).map(e => {
    const [a,b] = [lum(getComputedStyle(e).color), lum(under(e))].sort((x,y) => y-x)
    return [(a+.05)/(b+.05), e.textContent.trim().slice(0,40)] })
}"""

@pytest.mark.parametrize('name', ['index.html','start.html','losses.html','results/index.html','api/data.files.html','glossary.html'])
@pytest.mark.parametrize('scheme', ['light','dark'])
def test_light_and_dark_can_be_read(name, scheme, url, browser):
    with browser.new_context(viewport=dict(width=1400, height=1000), color_scheme=scheme) as c:
        page,_ = opened(c, url+name)
        back = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0,3).map(Number)")
        assert (max(back)<60) if scheme=='dark' else (min(back)>240)
        faint = [o for o in page.evaluate(CONTRAST, 'article p, article li, article td, article h1, article h2, article a, article dt') if o[0]<4.5]
        assert faint==[]

@pytest.mark.parametrize('word,where', [('girth','observables.html'), ('Langevin','nae.html'), ('pack','api/data.files.html')])
def test_search_finds(word, where, url, phone):
    page,wrong = opened(phone, f'{url}search.html?q={word}')
    page.wait_for_selector(f'#search-results a[href*="{where}"]', state='attached', timeout=15000)
    assert wrong==[]
    page.close()

def test_wide_tables_scroll_in_their_box(url, phone):
    page,_ = opened(phone, url+'results/b8.html')
    boxes = page.evaluate("[...document.querySelectorAll('.table-wrapper')].map(o => [o.scrollWidth, o.clientWidth, getComputedStyle(o).overflowX])")
    assert any(inner>outer for inner,outer,_ in boxes) and all(how in ('auto','scroll') for *_,how in boxes)
    page.close()

def test_from_the_front_page_to_the_first_notebook(url, dark):
    page,wrong = opened(dark, url)
    page.click('.sidebar-tree >> text=Start here'); page.wait_for_url('**/start.html')
    page.click('article >> text=the store'); page.wait_for_url('**/data.html*')
    assert page.locator('article h1').inner_text().startswith('Data') and wrong==[]
    page.close()
