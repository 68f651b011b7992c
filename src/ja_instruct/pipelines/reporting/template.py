"""The page that ``reporting`` fills in."""

REPORT_TEMPLATE = """\
<!doctype html>
<html lang="ja">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ja-instruct: {{ model.model_id }}</title>
<style>
  :root { --ink: #1d2433; --soft: #5b6478; --line: #dfe3ea; --accent: #1f6feb; --tint: #f5f7fa; }
  body { margin: 0 auto; max-width: 1080px; padding: 2rem 1.25rem 4rem; color: var(--ink);
         font: 16px/1.65 system-ui, "Hiragino Sans", "Noto Sans CJK JP", "Noto Sans JP", sans-serif; }
  h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
  p.lead { color: var(--soft); margin: 0; }
  .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); gap: .75rem; }
  .card { border: 1px solid var(--line); border-radius: 8px; padding: .8rem .9rem; }
  .card h3 { margin: 0 0 .4rem; font-size: .95rem; color: var(--accent); }
  .card dl { margin: 0; display: grid; grid-template-columns: 1fr auto; gap: .1rem .5rem;
             font-size: .84rem; }
  .card dt { color: var(--soft); } .card dd { margin: 0; font-variant-numeric: tabular-nums; }
  .effect { font-size: 1.35rem; background: var(--tint); border-radius: 8px; padding: 1rem 1.2rem; }
  .effect small { display: block; font-size: .85rem; color: var(--soft); }
  table { border-collapse: collapse; width: 100%; font-size: .92rem; }
  th, td { border-bottom: 1px solid var(--line); padding: .4rem .6rem; text-align: left;
           vertical-align: top; }
  td.number { text-align: right; font-variant-numeric: tabular-nums; width: 6rem; }
  .task { border: 1px solid var(--line); border-radius: 8px; margin: 0 0 1rem; overflow: hidden; }
  .task > header { background: var(--tint); padding: .7rem .9rem; white-space: pre-wrap; }
  .answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(250px, 1fr)); }
  .answers section { padding: .7rem .9rem; border-top: 1px solid var(--line); }
  .answers h4 { margin: 0 0 .3rem; font-size: .82rem; color: var(--soft); }
  .answers p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .92rem; }
  .tuned { background: #f2f8f4; }
</style>
</head>
<body>
<h1>{{ model.model_id }} を日本語の指示に答えるモデルへ</h1>
<p class="lead">ja-instruct run report · source {{ model.model_id }}
{%- if model.revision %} ({{ model.revision | truncate(24, True, "…") }}){% endif %}</p>

<h2>学習の効果 · Effect</h2>
{% if loss.eval_loss_before is defined %}
<div class="effect">Evaluation loss <strong>{{ "%.3f" | format(loss.eval_loss_before) }}</strong> →
<strong>{{ "%.3f" | format(loss.eval_loss_after) }}</strong>
<small>nats per token, mean over all tokens of {{ loss.eval_samples }} held-out pairs, before and after {{ loss.steps }} steps</small></div>
{% else %}
<div class="effect">Training loss <strong>{{ "%.3f" | format(loss.train_loss) }}</strong>
<small>nats per token, mean of {{ loss.steps }} steps; nothing was held out (sft.eval_fraction is 0)</small></div>
{% endif %}
{{ loss_plot | safe }}

<h2>各段階 · Stages</h2>
<div class="cards">
{% for stage, summary in summaries.items() %}
  <div class="card"><h3>{{ stage }}</h3><dl>
  {% for key, value in summary.items() %}<dt>{{ key }}</dt><dd>{{ "{:,}".format(value) }}</dd>
  {% endfor %}</dl></div>
{% endfor %}
</div>

<h2>除外した理由 · Rejected, by first rule</h2>
<table><tr><th>rule</th><th>records</th></tr>
{% for rule, count in rejected_by_rule %}<tr><td>{{ rule }}</td><td class="number">{{ "{:,}".format(count) }}</td></tr>
{% else %}<tr><td colspan="2">none</td></tr>
{% endfor %}</table>

{% if comparisons %}
<h2>回答の比較 · Answers before and after</h2>
{% for task in comparisons %}
<div class="task"><header>{{ task.input }}</header><div class="answers">
<section><h4>学習前 · base model</h4><p>{{ task.base or "(empty)" }}</p></section>
<section class="tuned"><h4>学習後 · fine-tuned</h4><p>{{ task.tuned or "(empty)" }}</p></section>
{% if task.reference %}<section><h4>参考解答 · reference</h4><p>{{ task.reference }}</p></section>{% endif %}
</div></div>
{% endfor %}
{% endif %}
</body>
</html>
"""
