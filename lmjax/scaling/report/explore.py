"""The frame of the interactive part, filled by script/explore.js and hidden until it runs. Holds no data."""

_ROWS = "\n".join(
    f"<tr id='best-{name}'><th scope=row>{words}</th><td></td><td></td><td></td></tr>"
    for name, words in (
        ("N", "N*, parameters"),
        ("D", "D*, tokens"),
        ("tokens_per_param", "tokens per parameter"),
        ("loss", "predicted loss"),
    )
)

PANEL = f"""<noscript><p class=small>The interactive chart needs JavaScript; every table and figure below stands
without it.</p></noscript>
<section id=explore hidden>
<h2>Explore the fit</h2>
<div class=controls>
<fieldset id=axis></fieldset><fieldset id=count-n></fieldset><fieldset id=count-c></fieldset>
</div>
<div class=stage>
<div>
<div id=plot><dl id=tip role=status hidden></dl></div>
<p id=caption class=small></p>
</div>
<div>
<h3>Parameters under these conventions</h3>
<p id=which class=small role=status></p>
<ul id=reasons hidden></ul>
<table id=parameters><thead><tr><th class=text scope=col>parameter</th><th scope=col>value</th><th scope=col>from</th>
<th scope=col>to</th></tr></thead><tbody></tbody></table>
<p><button type=button id=fit-json class=download>Download this fit as JSON</button></p>
<div id=budget>
<h3><label for=slider>Compute budget, FLOP as 6 N D</label></h3>
<input type=range id=slider step=0.01 aria-describedby=times>
<p class=typed><label for=typed>or type it:</label> <input id=typed inputmode=decimal autocomplete=off size=10
aria-describedby=wrong> <span id=times class=small></span></p>
<p id=wrong class=wrong role=alert></p>
<table aria-live=polite><thead><tr><th class=text scope=col>best</th><th scope=col>value</th>
<th scope=col id=level>from</th><th scope=col>to</th></tr></thead><tbody>
{_ROWS}
<tr id=cost><th scope=row><label for=chosen>extra loss at N =</label> <input id=chosen inputmode=decimal
autocomplete=off size=7 aria-describedby='wrong lost'></th><td></td><td></td><td></td></tr>
</tbody></table>
<p id=lost class=small>Extra loss: the loss lost by training this N at the budget instead of N*.</p>
</div>
</div>
</div>
<p id=missing class=small></p>
</section>"""
