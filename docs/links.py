"""Check the built site: every relative link and file resolves, every anchor exists, links outward are sound.

    python docs/links.py _docs     what is wrong, one line each; exit status 1 if anything is

Whether the links outward answer is asked by Sphinx's `linkcheck` (`make linkcheck`), which needs the network.
"""
import re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

class Page(HTMLParser):
    "Anchors and links of a page"
    def __init__(self, text):
        super().__init__()
        self.ids,self.links,self.loads = set(),[],[]
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.add(a['id'])
        if tag=='a' and a.get('name'): self.ids.add(a['name'])
        if tag=='a' and a.get('href') is not None: self.links.append(a['href'])
        if a.get('src'): self.loads.append(a['src'])
        if tag=='link' and a.get('href') and a.get('rel')!='canonical': self.loads.append(a['href'])
        self.loads += [s.split()[0] for s in (a.get('srcset') or '').split(',') if s.strip()]

def pages(site): return {p.relative_to(site).as_posix():Page(p.read_text(encoding='utf-8')) for p in sorted(site.rglob('*.html'))}

def unsound(url):
    "Why a link outward cannot be right, or None"
    if re.search(r'\s', url): return 'a space in it'
    try: u = urlsplit(url); u.port
    except ValueError as e: return str(e)
    if u.scheme=='mailto': return None if re.fullmatch(r'[^@\s]+@[\w.-]+\.\w+', u.path) else 'no address'
    if u.scheme not in ('http','https'): return f'scheme {u.scheme}'
    if not re.fullmatch(r'[\w-]+(\.[\w-]+)*\.[a-z]{2,}', u.hostname or ''): return 'no host'
    if u.fragment=='LNone': return 'no line of the source'
    return 'brackets or quotes in it' if re.search(r'[<>"{}|\\^`]', url) else None

def _is_outward(url): return bool(urlsplit(url).scheme) or url.startswith('//')

def problems(site):
    "What is wrong with the links of the site in folder `site`, a line each"
    site = Path(site).resolve()
    there = pages(site)
    for name,p in there.items():
        for url in dict.fromkeys(p.links+p.loads):
            if url.startswith('data:'): continue
            if _is_outward(url):
                if why := unsound(url): yield f'{name}: {url}: {why}'
                continue
            u = urlsplit(url)
            file = (site/name).parent/unquote(u.path) if u.path else site/name
            file = (file/'index.html' if file.is_dir() else file).resolve()
            if not file.is_relative_to(site) or not file.exists(): yield f'{name}: {url}: no such file'
            elif u.fragment and file.suffix=='.html':
                if unquote(u.fragment) not in there[file.relative_to(site).as_posix()].ids: yield f'{name}: {url}: no such place on that page'

def main(site='_docs'):
    if bad := list(problems(site)): sys.exit('\n'.join([*bad, f'{len(bad)} links are wrong']))
    there = pages(Path(site))
    print(f'{len(there)} pages, {sum(len(p.links) for p in there.values()):,} links: all lead somewhere')

if __name__=='__main__': main(*sys.argv[1:])
