"""The page that explains the filter, in the look of the run's report."""

STYLE = """\
  :root { --ink: #1d2433; --soft: #5b6478; --line: #dfe3ea; --accent: #1f6feb; --tint: #f5f7fa;
          --lost: #d9480f; }
  body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; color: var(--ink);
         font: 16px/1.65 system-ui, "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans JP",
         sans-serif; }
  h1 { font-size: 1.7rem; line-height: 1.35; margin: 0 0 .25rem; }
  h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
  h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
  p.lead, p.note, .soft { color: var(--soft); }
  p.lead { margin: 0; } p.note { margin: .4rem 0; font-size: .84rem; }
  a { color: var(--accent); }
  code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
         font-size: .88em; background: var(--tint); padding: 0 .25em; border-radius: 4px;
         overflow-wrap: anywhere; }
  .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr));
           gap: .75rem; }
  .card { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; }
  .card h3 { margin: 0; font-size: .84rem; font-weight: normal; color: var(--soft); }
  .card p { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
  .effect { background: var(--tint); border-radius: 8px; padding: 1rem 1.2rem; }
  .effect p { margin: 0 0 .6rem; } .effect p:last-child { margin: 0; }
  .effect p.first { font-size: 1.2rem; line-height: 1.5; }
  .effect strong, td.lost { color: var(--lost); }
  .effect li { margin: .2rem 0; } .effect ul { margin: .2rem 0 .6rem; padding-left: 1.2rem; }
  .wide { overflow-x: auto; }
  .list { overflow: auto; max-height: 24rem; }
  .list th { position: sticky; top: 0; background: #fff; }
  table { border-collapse: collapse; width: 100%; font-size: .92rem; }
  table.narrow { width: auto; min-width: min(100%, 26rem); }
  th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left;
           vertical-align: top; }
  th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; }
  td.number { white-space: nowrap; } td.lost { font-weight: 600; }
  tr.explained td { border-bottom: 0; padding-bottom: 0; }
  tr.explanation td { padding-top: 0; font-size: .84rem; color: var(--soft); }
  .text { unicode-bidi: isolate; white-space: pre-wrap; overflow-wrap: anywhere; }
  .columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr));
             gap: 0 2rem; align-items: start; }
  details { margin: .5rem 0; } summary { cursor: pointer; color: var(--accent); }
  input[type=search] { font: inherit; font-size: .92rem; width: 100%; max-width: 26rem;
           box-sizing: border-box; padding: .25rem .6rem; border: 1px solid var(--line);
           border-radius: 8px; }
  details.rule { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
  details.rule > summary { background: var(--tint); padding: .5rem .9rem; }
  .examples { scroll-margin-top: 3rem; }
  .example { border-top: 1px solid var(--line); padding: .7rem .9rem; }
  .example header { font-size: .84rem; color: var(--soft); }
  .fields { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr));
           gap: .3rem 1.2rem; }
  .fields h4 { margin: .3rem 0 0; font-size: .82rem; color: var(--soft); }
  .fields p { margin: 0; font-size: .92rem; }
  @media (max-width: 600px) {
    table { font-size: .84rem; } th, td { padding: .3rem; }
  }
  mark { background: #ffe3d3; color: #a63200; padding: 0 .1em; border-radius: 3px; }
"""

# Typing into a search field shows the rows of its list that hold the text, also those folded away.
SEARCH = """\
  document.querySelectorAll("input[type=search]").forEach((field) => {
    const list = field.closest("section");
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      list.querySelectorAll("details").forEach((part) => { part.open = wanted !== ""; });
      list.querySelectorAll("tr[data-entry]").forEach((row) => {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
      });
    });
  });
"""

MACROS = """\
{% macro number(value) %}{{ "{:,}".format(value) }}{% endmacro %}

{% macro breakable(rule) %}{% for part in rule.split("_") %}{{ part }}
{%- if not loop.last %}_<wbr>{% endif %}{% endfor %}{% endmacro %}

{% macro head(counted) %}
<tr><th>found</th><th></th>{% if counted %}<th class="number">times</th>{% endif %}
<th class="number">alone</th><th class="number">pairs</th></tr>
{% endmacro %}

{% macro rows(entries, counted) %}
{% for entry in entries %}<tr data-entry><td class="text">{{ entry.text }}</td>
<td class="soft">{{ entry.code_point }}</td>
{%- if counted %}<td class="number">{{ number(entry.times) }}</td>{% endif -%}
<td class="number">{{ number(entry.alone) }}</td>
{#- -#}<td class="number">{{ number(entry.pairs) }}</td></tr>
{% endfor %}
{% endmacro %}

{% macro list(found) %}
<section>
<h3>{{ found.japanese }} · {{ found.english }}</h3>
<p class="note">{{ number(found.count) }} found · edited in <code>{{ found.edited_in }}</code></p>
{% if found.rest %}<p><input type="search" placeholder="検索 · search"
 aria-label="{{ found.english }}: search"></p>{% endif %}
<div class="list"><table>{{ head(found.counted) }}
{{- rows(found.top, found.counted) }}</table></div>
{% if found.rest %}
<details><summary>残り · the other {{ number(found.rest | length) }}</summary>
<div class="list"><table>{{ head(found.counted) }}
{{- rows(found.rest, found.counted) }}</table></div>
{% if found.left_out %}<p class="note">あと {{ number(found.left_out) }} 件 ·
{{ number(found.left_out) }} more are in <code>filter_report.json</code>.</p>{% endif %}
</details>
{% endif %}
</section>
{% endmacro %}
"""

ADVICE = """\
<h2>何を変えるか · What to change</h2>
<div class="effect">
{% if advice.worst %}
{% set worst = advice.worst %}
<p class="first"><strong>{{ worst.rule }}</strong> だけを理由に、
{#- #}日本語の組を約 <strong>{{ number(worst.lost) }}</strong> 組
{#- #}（読んだ組の {{ advice.percent }} %）失っています。
{#- #}<code>{{ advice.edited_in }}</code> を緩めると戻ります。</p>
<p class="first"><strong>{{ worst.rule }}</strong> alone costs about
<strong>{{ number(worst.lost) }}</strong> Japanese pairs ({{ advice.percent }} % of all read).
To get them back, loosen <code>{{ advice.edited_in }}</code>.</p>
{% else %}
<p class="first">CLD2 が日本語と判定する組を、それだけで失わせている規則はありません。</p>
<p class="first">No rule alone costs pairs that CLD2 finds Japanese: nothing to loosen.</p>
{% endif %}
{% if advice.changes %}<ul>
{% for item in advice.changes %}
{% if item.step %}<li><code>{{ item.edited_in }}: {{ item.step.value }}</code> →
約 {{ number(item.step.pairs) }} 組以上が戻る · brings back at least about
{{ number(item.step.pairs) }} pairs</li>
{% else %}<li><b class="text">{{ item.text }}</b>
{%- if item.code_point %} ({{ item.code_point }}){% endif %} →
これだけを理由に {{ number(item.alone) }} 組 · {{ number(item.alone) }} pairs for this alone ·
<code>{{ item.edited_in }}{% if item.freed_at is not none %}: {{ item.freed_at }}{% endif %}</code>
</li>{% endif %}
{% endfor %}
</ul>{% endif %}
<p class="note">CLD2 は言語しか見ません。変える前に、
{#- #}<a href="#examples">下の例</a>で本当に良い組かを確かめてください。
{#- #}変更は <code>conf/base</code> ではなく
{#- #}自分の環境（<code>conf/&lt;name&gt;/</code>）に書きます。</p>
<p class="note">CLD2 judges nothing but the language: look at the
<a href="#examples">examples</a> first. Changes belong in an environment of your own
(<code>conf/&lt;name&gt;/</code>), not in <code>conf/base</code>.</p>
</div>
"""

RULES = """\
<h2>どの規則が良いデータを失わせるか · Which rule costs most good data</h2>
{{ rejection_plot | safe }}
<div class="wide"><table>
<tr><th>規則 · rule</th><th class="number">日本語<br>Japanese</th>
<th class="number">単独<br>alone</th><th class="number">最初<br>first</th>
<th class="number">全部<br>all</th></tr>
{% for rule in rules %}
<tr class="explained"><td>{% if rule.examples %}<a href="#rule-{{ rule.place }}">
{{- breakable(rule.cost.rule) }}</a>{% else %}{{ breakable(rule.cost.rule) }}{% endif %}</td>
<td class="number{% if rule.cost.lost %} lost{% endif %}">{{ number(rule.cost.japanese) }}
{%- if rule.cost.on_purpose %}*{% endif %}</td>
<td class="number">{{ number(rule.cost.alone) }}</td>
<td class="number">{{ number(rule.cost.first) }}</td>
<td class="number">{{ number(rule.cost.pairs) }}</td></tr>
<tr class="explanation"><td colspan="5">{{ rule.explanation.japanese }} ·
{{ rule.explanation.english }}</td></tr>
{% else %}<tr><td colspan="5">なし · none</td></tr>
{% endfor %}
</table></div>
<p class="note">全部: この規則に触れた組。最初: そのうち先の規則には触れなかった組。
{#- #}単独: ほかの規則に触れなかった組。
{#- #}日本語: 単独のうち CLD2 が両側を日本語と判定する組の推定数。
{#- #}* は日本語であっても落とすための規則です。</p>
<p class="note">all: pairs that the rule is against. first: those that no earlier rule is against.
alone: those that no other rule is against. Japanese: an estimate of those among the latter whose
two fields CLD2 finds Japanese, from a sample. * is a rule that drops Japanese on purpose. Pairs
dropped by <code>language</code> are those that CLD2 itself rejects, so its own mistakes do not
show here.</p>
{% if silent %}<p class="note">一組も落とさなかった規則 · against no pair:
{% for rule in silent %}<code>{{ rule }}</code> {% endfor %}</p>{% endif %}
"""

TEXTS = """\
{% if lists or steps %}
<h2>どの文字列・文字が失わせるか · Which texts and characters cost most</h2>
{% if steps %}
<div class="columns">
{% for name, values in steps.items() %}
<section><h3><code>{{ name }}</code></h3>
<table class="narrow"><tr><th>値 · value</th><th class="number">戻る組 · pairs, at least</th></tr>
{% for step in values %}<tr><td>{{ step.value }}</td>
<td class="number">{{ number(step.pairs) }}</td></tr>{% endfor %}
</table></section>
{% endfor %}
</div>
<p class="note">その値で禁止でなくなる一文字だけが理由だった組の数です。
{#- #}複数の文字が理由の組も加わりますが、
{#- #}まだ調べていない規則（CLD2 など）が落とす分は引いていません。</p>
<p class="note">Pairs that one character alone, no longer banned at that value, is against. Pairs
with several such characters come on top; what CLD2 and the count among the survivors then drop is
not taken off.</p>
{% endif %}
<p class="note">alone: これだけが理由の組 · pairs with nothing else against them.
pairs: これを含む組 · pairs that hold it.
times: コーパスでの出現数 · its count in the corpus.</p>
<div class="columns">{% for found in lists %}{{ list(found) }}{% endfor %}</div>
{% endif %}
"""

EXAMPLES = """\
<h2 id="examples">落とした組の例 · Examples of what was dropped</h2>
{% for rule in rules if rule.examples %}
<details class="rule"><summary>{{ rule.cost.rule }}
<span class="soft">· {{ rule.examples | length }} / {{ number(rule.cost.pairs) }}</span></summary>
{# a link to what is folded away unfolds it -#}
<div class="examples" id="rule-{{ rule.place }}">
{% for example in rule.examples %}
<div class="example"><header>{{ number(example.record) }} 件目 · record {{ number(example.record) }}
{%- if example.matched %} · {{ example.field }}:
<mark class="text">{{ example.matched }}</mark>
{%- if example.code_point %} {{ example.code_point }}{% endif %}{% endif %}</header>
<div class="fields">
{% for field, parts in example.fields.items() %}
<section><h4>{{ field }}</h4><p class="text">{% for text, found in parts -%}
{% if found %}<mark>{{ text }}</mark>{% else %}{{ text }}{% endif %}
{%- else %}<span class="soft">(empty)</span>{% endfor %}</p></section>
{% endfor %}
</div></div>
{% endfor %}
</div></details>
{% else %}<p>なし · none</p>
{% endfor %}
"""

REST = """\
<h2>直した誤り · Slips that were repaired</h2>
{% if replacements %}
<div class="wide"><table class="narrow"><tr><th>置き換えた文字列 · replaced</th>
<th class="number">pairs</th></tr>
{% for entry in replacements %}<tr><td class="text">{{ entry.text }}</td>
<td class="number">{{ number(entry.pairs) }}</td></tr>{% endfor %}
</table></div>
{% endif %}
<p class="note">{{ number(replacements_touching) }} / {{ number(replacements_count) }}
件の置換が使われました · replacements of <code>word_lists/replacements.yml</code> that changed some
pair{% if replacements | length < replacements_touching %}; the first
{{ replacements | length }} are shown{% endif %}.</p>

<h2>長さ · Lengths</h2>
{{ length_plot | safe }}

<h2>所要時間 · Time</h2>
<div class="columns">
{% for title, seconds in times.items() %}
<section><h3>{{ title }}</h3><table class="narrow">
{% for name, value in seconds.items() %}<tr><td>{{ name }}</td>
<td class="number">{{ "{:,.2f}".format(value) }} s</td></tr>
{% else %}<tr><td>–</td></tr>{% endfor %}
</table></section>
{% endfor %}
</div>
<p class="note">規則ごとの時間はスレッドの合計です · the seconds of the rules are summed over the
threads, so they may add up to more than their step.</p>
"""

FILTER_PAGE_TEMPLATE = f"""\
<!doctype html>
<html lang="ja">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ja-instruct: data_filtering</title>
<style>
{STYLE}</style>
</head>
<body>
{MACROS}<h1>どの組を、なぜ落としたか</h1>
<p class="lead">ja-instruct filter report · which pairs were dropped, and why</p>
{ADVICE}
<h2>入力と出力 · What came in, what is left</h2>
<div class="cards">
{{% for name, value in cards.items() %}}
  <div class="card"><h3>{{{{ name }}}}</h3><p>{{{{ value }}}}</p></div>
{{% endfor %}}
</div>
{RULES}{TEXTS}{EXAMPLES}{REST}
<script>
{SEARCH}</script>
</body>
</html>
"""
