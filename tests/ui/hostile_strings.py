"""A hundred texts that try to be more than text: model names, file names, cells, tokens, messages and metrics may hold them.

Those with a script set `window.tb_owned` where it runs; those that name a file or an address want it to be read. A page that
shows one of them shows exactly its characters.
"""

from __future__ import annotations

OWNED = "tb_owned"
"""The property of `window` that a script sets."""
RUN = f"window.{OWNED}=1"

_TAGS = [
    f"<script>{RUN}</script>",
    f"<SCRIPT>{RUN}</SCRIPT>",
    f"<script >{RUN}</script >",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"</script><script>{RUN}</script>",
    f"<script/src='data:text/javascript,{RUN}'></script>",
    f"<script type=module>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f"<img src=x onerror='{RUN}'>",
    f'<img src=x onerror="{RUN}">',
    f"<img/src=x/onerror={RUN}>",
    f"<img src=x onerror={RUN}//",
    f"<IMG SRC=x OnErRoR={RUN}>",
    f"<img\tsrc=x\tonerror={RUN}>",
    f"<img src='x'onerror={RUN}>",
    f"<image src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"<svg/onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f'<svg><a xlink:href="javascript:{RUN}"><text x=20 y=20>click</text></a></svg>',
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}>",
    f"<body onload={RUN}>",
    f"<iframe srcdoc='<script>parent.{OWNED}=1</script>'></iframe>",
    f'<iframe src="javascript:parent.{OWNED}=1"></iframe>',
    f'<object data="javascript:{RUN}"></object>',
    f'<embed src="javascript:{RUN}">',
    f"<video><source onerror={RUN}></video>",
    f"<audio src=x onerror={RUN}>",
    f"<details open ontoggle={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<select autofocus onfocus={RUN}>",
    f"<textarea autofocus onfocus={RUN}>",
    f"<marquee onstart={RUN}>",
    f"<button onclick={RUN}>Next</button>",
    f'<form action="javascript:{RUN}"><input type=submit></form>',
    f'<a href="javascript:{RUN}">click</a>',
    f'<a href="java\nscript:{RUN}">click</a>',
    f'<a href="&#106;avascript:{RUN}">click</a>',
    f"<style>@import 'data:text/css,body{{}}';</style><img src=x onerror={RUN}>",
    "<style>.tb-next{display:none}</style>",
    f"<link rel=stylesheet href=x onerror={RUN}>",
    "<base href='https://example.invalid/'>",
    "<meta http-equiv=refresh content='0;url=https://example.invalid/'>",
    f"<template><script>{RUN}</script></template>",
    f'<noscript><p title="</noscript><img src=x onerror={RUN}>">',
    f"<xss onpointerrawupdate={RUN} style=display:block>x</xss>",
    f'<div style="animation-name:x" onanimationstart={RUN}>',
]
_BREAKOUTS = [
    f'"><img src=x onerror={RUN}>',
    f"'><img src=x onerror={RUN}>",
    f"`><img src=x onerror={RUN}>",
    f'" onmouseover="{RUN}',
    f"' onmouseover='{RUN}",
    f'x" autofocus onfocus="{RUN}" y="',
    f"</span><img src=x onerror={RUN}>",
    f"</td></tr></table><img src=x onerror={RUN}>",
    f"</option></select><img src=x onerror={RUN}>",
    f"</textarea><img src=x onerror={RUN}>",
    f"</title><img src=x onerror={RUN}>",
    f"</style><img src=x onerror={RUN}>",
    f"</pre><img src=x onerror={RUN}>",
    f"</summary></details><img src=x onerror={RUN}>",
    f"--><img src=x onerror={RUN}><!--",
    f"]]><img src=x onerror={RUN}>",
    f"*/{RUN}/*",
    f"';{RUN};'",
    f'";{RUN};"',
    f"`${{{RUN}}}`",
]
_ENCODED = [
    f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"&#60;img src=x onerror={RUN}&#62;",
    f"&#x3c;img src=x onerror={RUN}&#x3e;",
    f"&lt&#59;img src=x onerror={RUN}&gt;",
    f"%3Cimg%20src=x%20onerror={RUN}%3E",
    f"\\u003cimg src=x onerror={RUN}\\u003e",
    f"\\x3cscript\\x3e{RUN}\\x3c/script\\x3e",
    f"\uff1cscript\uff1e{RUN}\uff1c/script\uff1e",
    f"<\u200bscript>{RUN}</script>",
    f"+ADw-script+AD4-{RUN}+ADw-/script+AD4-",
]
_OTHER_LANGUAGES = [
    "{{ 7 * 7 }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{# not a comment #}",
    "{0.__class__.__mro__}",
    "${7*7}",
    "%(name)s %s %d %n",
    f"[click](javascript:{RUN})",
    f'![x](x" onerror="{RUN})',
    f"$\\href{{javascript:{RUN}}}{{x}}$",
    "\\(\\unicode{x3c}\\)",
    "`rm -rf x`",
    "\x1b[31mred\x1b]0;title\x07",
    "\u202egpj.exe",
]
_PLACES = [
    "/etc/hostname",
    "file:///etc/hostname",
    "https://example.invalid/page.html",
    "../../../etc/hostname",
    "..\\..\\hostname",
    "~/.bashrc",
    "con.txt",
    "a" * 300 + ".txt",
]

HOSTILE: tuple[str, ...] = (*_TAGS, *_BREAKOUTS, *_ENCODED, *_OTHER_LANGUAGES, *_PLACES)
"""All of them."""
