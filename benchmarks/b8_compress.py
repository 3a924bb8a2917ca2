"B8: bytes a jet at a given error of mass and transverse momentum, 25x25 images of W and QCD jets"
import statistics, tempfile, time, warnings
from pathlib import Path
from timing import number, show, side_by_side, spread, table
import numpy as np
from jetbook.data.hdf5 import sample
from jetbook.data.loaders import split
from jetbook.train.runs import train
from jetbook.codec.files import AUTHOR_R6, PixelCoder, curve, savings
from jetbook.codec.codes import plain_sizes, quantise

def percent(x): return f'{100*x:.1f}%'

def curve_table(t):
    "The learned code beside the best without learning, row by row"
    rows = [[r['class'], f"{r.step:g}", f"{r['mass, %']:.3g}", f"{r['pT, %']:.3g}", f"{r['mass bias, %']:.2g}", f"{r.learned:.1f} ± {r['±']:.1f}", f"{r.positions:.1f}", f"{r['sparse, same step']:.1f}", f"{r['best sparse']:.1f} ({r.which})", f'{r.counted:.1f}',
             ('**%s**' if r['saved, best sparse']>=.2 else '%s')%percent(r['saved, best sparse']), percent(r['saved on counted'])] for _,r in t.iterrows()]
    return table(['class','step','2σ mass, %','2σ pT, %','mass bias, %','**learned**','of it positions','best of zlib, zstd at the same step','best sparse code at no larger error','counted frequencies','saved on best sparse','on counted'], rows)

def fewer(a, b): return f'{a:.1f}' if a<=b else f'**{a:.1f}**'

def latent_table(df):
    "Every autoencoder point, and the fewest bytes with which the learned code has smaller errors"
    rows,l = [],df[df.kind=='learned']
    for a in df[df.kind.isin(['floats','latents'])].itertuples():
        ok = l[(l.cls==a.cls)&(l.mass_rms<=a.mass_rms)&(l.pt_rms<=a.pt_rms)&(l.pixel<=a.pixel)]
        rows.append([a.cls, a.code, f'{a.step:g}' if a.step else '', f'{a.bytes:.0f}', f'{a.mass:.3g} [{a.mass_lo:.3g}, {a.mass_hi:.3g}]', f'{a.mass_bias:.2g}', f'{a.pt:.3g} [{a.pt_lo:.3g}, {a.pt_hi:.3g}]', f'{a.pt_bias:.2g}', f'{a.pixel:.3g}', fewer(ok.bytes.min(), a.bytes) if len(ok) else '**none**'])
    for n,c,m,p in AUTHOR_R6:
        ok = l[(l.cls==c)&(l.mass<=m)&(l.pt<=p)]
        rows.append([c, f"R6's author, on other data: {n} floats", '', 4*n, m, '', p, '', '', fewer(ok.bytes.min(), 4*n) if len(ok) else '**none**'])
    return table(['class','code','step, σ','bytes a jet','2σ mass, %','bias','2σ pT, %','bias','pixel error, %','learned code with errors no larger, bytes'], rows)

def main(tmp, quick=False):
    tmp,wq = Path(tmp)/'b8',sample('wqcd')
    if quick: wq = wq.select(np.r_[:600,len(wq)-600:len(wq)])
    parts = split(wq)
    few = dict(epochs=1) if quick else {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        code = train('pixel_code', wq, tmp/'code', progress=False, **few)
        aes = {f'R6, {n}':train('dense_ae', wq, tmp/f'ae{n}', bottleneck=n, progress=False, **(few or dict(epochs=300))) for n in (200,100)}
        aes['unrolled_ae, 100'] = train('unrolled_ae', wq, tmp/'unrolled', bottleneck=100, progress=False, **few)
    df = curve(wq, parts.test, code, parts.train, aes)
    t,test,l = savings(df),wq.select(parts.test),df[df.kind=='learned']
    c = PixelCoder(code.model, .25); lv = quantise(test, c.quantiser); data = c.encode(lv)
    rates = side_by_side({'written':(lambda: c.encode(lv),len(test)), 'read':(lambda: c.decode(data,len(test)),len(test))}, 1 if quick else 5)
    gain = (t[t.step==.25]['best sparse']-t[t.step==.25].learned).mean()
    size = (code.path/'model.safetensors').stat().st_size
    short = t[t['saved, best sparse']<.2]
    lost = '; '.join(f"{r['class']} at {r['mass, %']:.2g}% mass error: {percent(r['saved, best sparse'])}" for _,r in short.iterrows()) or 'nowhere'
    plain = plain_sizes(test)
    return '\n\n'.join(['## B8: bytes a jet against error, 25x25 images',
        f"Jets: {wq.source}; {len(parts.train):,} to train or count on, {len(test):,} in the test part, read once. Without columns. The error is two standard deviations of (in-out)/in; ± is the standard error over jets. All bytes are those of streams that were written and can be read back. "
        f"Without loss: {', '.join(f'{k} {v:,.0f}' for k,v in plain.items())} bytes a jet.",
        curve_table(t),
        f"At least 20% fewer bytes than the best sparse code: {len(t)-len(short)} of {len(t)} points. Less: {lost}. 'Best sparse' may choose among roundings (uniform, three other exponents, logarithmic of 4 to 8 bits, half precision), zlib -9 and zstd -19, and is held to errors (bias included) no larger in mass and in pT. "
        f"The per-pixel error is the same at the same step: all codes of a row but 'best sparse' give the same images. 'Counted frequencies' is an arithmetic code with each pixel's occupancy and one histogram of levels, counted on the training jets: learnt, but no network.",
        "Autoencoders as codes: the numbers of the bottleneck as float32, those under zlib, and rounded in steps of so many standard deviations and entropy-coded. R6's networks had 300 epochs, ten times the author's, for there are so many fewer jets; "
        "`unrolled_ae` keeps the four-momentum among its numbers, so that its float32 row has mass and pT exactly. The learned code beside them has no larger error in mass, pT (biases included) and pixels; bold where it takes more bytes or doesn't reach that.",
        latent_table(df),
        f"The learned code is one network for all steps, of {code.metrics['fit']['parameters']:,} parameters, trained in {code.metrics['fit']['seconds']:.0f} s; its weights are {size/1e3:.0f} kB, which at step 0.25 are saved after {size/gain:,.0f} jets. "
        f"What was written is {(l.bytes/l.promised).min():.4f} to {(l.bytes/l.promised).max():.4f} of what the network's probabilities promise. "
        f"{number(statistics.median(rates['written']))} jets/s are written ({spread(rates['written'])}), {number(statistics.median(rates['read']))} read ({spread(rates['read'])})."])

if __name__=='__main__':
    with tempfile.TemporaryDirectory() as t: show(main(t))
