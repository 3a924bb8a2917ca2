#!/usr/bin/env bash
# Equations without a network: puts MathJax into docs/_static. Without npm the pages take it from Sphinx's CDN instead.
set -euo pipefail
cd "$(dirname "$0")"
out=_static/tex-svg.js
[ ! -s $out ] || exit 0
if ! command -v npm >/dev/null; then echo "no npm: pages will load MathJax from a CDN"; exit 0; fi
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
if npm install --silent --no-audit --no-fund --prefix "$tmp" mathjax@3.2.2 >/dev/null 2>&1
then cp "$tmp/node_modules/mathjax/es5/tex-svg.js" $out
else echo "npm could not install MathJax: pages will load it from a CDN"; fi
