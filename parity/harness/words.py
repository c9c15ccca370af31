# SPDX-License-Identifier: Apache-2.0
"""Every word of the terminal tables and of the page, in English and Chinese: one table, so that neither can drift.

Numbers of limits are never typed here: they are read from `gates.LIMITS` and `gates.SEMANTIC` when a text is
formatted. Results keep the judge's English (files travel between machines); `Words.translate` shows it in another
language, by the sentences of REASONS and ITEMS.
"""

import re
import unicodedata
from functools import cache

from parity.harness.behaviour import VANISHED
from parity.harness.gates import DEVIATIONS, LIMITS, SEMANTIC

LANGUAGES = ("en", "zh")

# key: (English, Chinese). Placeholders are those of str.format; LIMITS, SEMANTIC, VANISHED and DEVIATIONS are there.
TABLE: dict[str, tuple[str, str]] = {
    # --- verdicts: the keys are the words that gates.py uses
    "verdict.ok": ("ok", "通过"),
    "verdict.warn": ("warn", "警告"),
    "verdict.inherited": ("inherited", "继承"),
    "verdict.FAIL local": ("FAIL local", "失败(本层)"),
    "verdict.FAIL glue": ("FAIL glue", "失败(层间)"),
    "verdict.FAIL end": ("FAIL end", "失败(输出)"),
    "verdict.FAIL contract": ("FAIL contract", "失败(契约)"),
    "verdict.pass": ("pass", "通过"),
    "verdict.fail": ("FAIL", "失败"),
    "mean.ok": ("within its limits", "在限值之内"),
    "mean.warn": ("within its limits, but above the usual", "在限值之内, 但高于常见值"),
    "mean.inherited": (
        "wrong only because something before it or inside it is",
        "仅因上游或内部出错而不一致",
    ),
    "mean.FAIL local": (
        "wrong on the reference's own input: the fault is here",
        "输入与标杆相同仍出错: 问题在本层",
    ),
    "mean.FAIL glue": (
        "every part of it is right, their combination is not",
        "各子层均正确, 组合方式有误",
    ),
    "mean.FAIL end": (
        "the end of the run is wrong and no single layer explains it",
        "最终输出有误, 且没有单层可以解释",
    ),
    "mean.FAIL contract": (
        "parameters, layers, types or the control are unfit",
        "参数、层、类型或标杆不符合要求",
    ),
    # --- gates: name, question, rule
    "gate.G0": ("G0 contract", "G0 契约"),
    "gate.G1": ("G1 semantics", "G1 语义"),
    "gate.G2": ("G2 numerics", "G2 数值"),
    "gate.G3": ("G3 probes", "G3 探针"),
    "gate.G5": ("G5 gradients", "G5 梯度"),
    "gate.drift": ("G5 drift", "G5 漂移"),
    "gate.training": ("G5 training", "G5 训练"),
    "gate.graph mode": ("G5 graph mode", "G5 图模式"),
    "gate.other": ("{gate}", "{gate}"),
    "ask.G0": (
        "same parameters bit for bit, same layers in the same order, same constants, same types, repeatable, taps "
        "harmless?",
        "参数逐位相同、层及其顺序相同、常量相同、类型相同、结果可重复、取数不影响结果?",
    ),
    "ask.G1": (
        "same mathematics? Port and reference both in float64 on the CPU",
        "数学上是否相同? 移植与标杆均在 CPU 上以 float64 运行",
    ),
    "ask.G2": ("same quality of arithmetic, per dtype and device?", "各数据类型与设备上的数值精度是否相当?"),
    "ask.G3": (
        "same constants and conventions? Inputs that amplify one of them",
        "常量与约定是否相同? 输入专门放大其中一项",
    ),
    "ask.G5": (
        "same derivatives of the inputs and of every parameter? float64, then each dtype",
        "输入与每个参数的梯度是否相同? 先 float64, 再各数据类型",
    ),
    "rule.G0": ("exact", "完全相等"),
    "rule.G1": (
        "relative L2 at most {SEMANTIC[composed]:.0e} ({SEMANTIC[native]:.0e} with MindSpore's native LayerNorm, which "
        "computes in float32 inside)",
        "相对误差 (L2) 不超过 {SEMANTIC[composed]:.0e} (使用 MindSpore 原生 LayerNorm 时为 {SEMANTIC[native]:.0e}, "
        "其内部以 float32 计算)",
    ),
    "rule.G2": (
        "at most {LIMITS[fp32].ratio_fail:g} (fp32) or {LIMITS[fp16].ratio_fail:g} (fp16, bf16) times the error of "
        "torch in the same precision",
        "误差不超过同精度 torch 的 {LIMITS[fp32].ratio_fail:g} 倍 (fp32) 或 {LIMITS[fp16].ratio_fail:g} 倍 "
        "(fp16, bf16)",
    ),
    "rule.G3": ("the rule of G2", "与 G2 相同"),
    "rule.G5": (
        "float64 as G1, through native LayerNorm the random walk of its float32 roundings; else the G2 limit of a run "
        "forward and back, with {DEVIATIONS} standard deviations of chance on top for few numbers; a gradient that is "
        "zero in exact arithmetic ({VANISHED:.0e} of the typical one) is noise on both sides",
        "float64 同 G1, 经过原生 LayerNorm 时按其 float32 舍入的随机游走; 其余按一次前向加反向的 G2 限值, "
        "数目很少时另加偶然起伏的 {DEVIATIONS} 个标准差; "
        "理论上为零的梯度 (小于典型值的 {VANISHED:.0e}) 在两侧都只是噪声",
    ),
    # --- contract checks: the keys are the names that the judge gives them
    "check.parameters": ("parameters", "参数"),
    "check.weights": ("weights", "权重"),
    "check.weight bits": ("weight bits", "权重逐位"),
    "check.lint": ("lint", "常量"),
    "check.tables": ("tables", "固定表"),
    "check.keys": ("keys", "键"),
    "check.inputs": ("inputs", "输入"),
    "check.taps of port": ("taps of port", "移植观测点"),
    "check.taps of truth": ("taps of truth", "真值观测点"),
    "check.outputs": ("outputs", "输出"),
    "check.order": ("order", "顺序"),
    "check.dtypes": ("dtypes", "类型"),
    "check.repeatable": ("repeatable", "可重复"),
    "check.trainable": ("trainable", "可训练"),
    "check.steps": ("steps", "步数"),
    "check.decisions": ("decisions", "各步决定"),
    "check.graph mode": ("graph mode", "图模式"),
    "check.runs": ("runs", "可运行"),
    # --- headings of tables
    "heading.G1": (
        "G1 semantics, port and reference in float64 on the CPU, limit {limit} (ratio: share of the limit)",
        "G1 语义, 移植与标杆均在 CPU 上以 float64 运行, 限值 {limit} (误差比: 占限值的比例)",
    ),
    "heading.G2": ("G2 numerics {dtype}, ratio limit {limit}", "G2 数值 {dtype}, 误差比限值 {limit}"),
    "heading.G3": (
        "G3 probes {dtype}, inputs that amplify one constant each, ratio limit {limit}",
        "G3 探针 {dtype}, 每个输入放大一个常量, 误差比限值 {limit}",
    ),
    "heading.G5": (
        "G5 gradients {dtype} of inputs and parameters (columns repeat: a gradient has no local error)",
        "G5 梯度 {dtype}, 输入与参数 (两组列相同: 梯度没有单层误差)",
    ),
    "heading.drift": (
        "G5 drift {dtype} over repeated steps, beside a reference started one unit in the last place away",
        "G5 漂移 {dtype}, 多步迭代, 与初值相差 1 ULP 的标杆对照",
    ),
    "heading.training": (
        "G5 training {dtype} over many steps, beside a reference started one unit of float32 away",
        "G5 训练 {dtype}, 多步训练, 与初值相差 1 ULP (float32) 的标杆对照",
    ),
    "heading.graph mode": ("G5 graph mode against PyNative, {dtype}", "G5 图模式对 PyNative, {dtype}"),
    "heading.other": ("{gate} {dtype}", "{gate} {dtype}"),
    "heading.tail": (
        "{what}, formulations of {form}: {passed} of {total} cases pass",
        "{what}, 实现形式 {form}: {passed}/{total} 个用例通过",
    ),
    "column.tap": ("tap", "层"),
    "column.shape": ("shape", "形状"),
    "column.max_abs": ("max abs", "最大误差"),
    "column.port": ("port", "移植"),
    "column.ref": ("ref", "标杆"),
    "column.ratio": ("ratio", "误差比"),
    "column.pred": ("pred", "预测"),
    "column.cosine": ("cosine", "余弦相似度"),
    "column.verdict": ("verdict", "结论"),
    "group.local": ("local error", "单层误差"),
    "group.prop": ("propagated error", "累积误差"),
    # --- rows of tables
    "row.output": ("output", "输出"),
    "row.scalar": ("scalar", "标量"),
    "row.call": ("{name} (call {number})", "{name} (第 {number} 次调用)"),
    "row.parts_hidden": (
        "   ... {count} parts ok, ratio <= {worst} (-v shows them) ...",
        "   ... {count} 个单层用例通过, 误差比 <= {worst} (用 -v 显示) ...",
    ),
    "row.hidden": (
        "   ... {count} rows {verdict}, ratio <= {worst} (-v shows them) ...",
        "   ... {count} 行{verdict}, 误差比 <= {worst} (用 -v 显示) ...",
    ),
    "row.hidden_mixed": (
        "   ... {count} rows: {verdicts}, ratio <= {worst} (-v shows them) ...",
        "   ... {count} 行: {verdicts}, 误差比 <= {worst} (用 -v 显示) ...",
    ),
    "row.some": ("{count} {verdict}", "{count} {verdict}"),
    "row.net": (" {case}, {count} taps:", " {case}, {count} 个观测点:"),
    "row.taps": ("{case} ({count} taps)", "{case} ({count} 个观测点)"),
    "row.gradients": ("{case} ({count} gradients)", "{case} ({count} 个梯度)"),
    "row.inside": ("   inside {name}: {parts}", "   {name} 内部: {parts}"),
    "row.here": ("{name} {ratio} <- HERE", "{name} {ratio} <- 在此"),
    "row.broken": (">{case}: G0 {check} FAIL: {detail}", ">{case}: G0 {check} 失败: {detail}"),
    "row.note": ("{case} {dtype}: {note}", "{case} {dtype}: {note}"),
    # --- summary lines
    "line.verdict": (
        "{failed} FAIL · {inherited} inherited · {warn} warn · {ok} ok of {taps} taps in {runs} runs · {checks} "
        "contract checks · {seconds} s",
        "{failed} 失败 · {inherited} 继承 · {warn} 警告 · {ok} 通过, 共 {taps} 个观测点, {runs} 次运行 · {checks} "
        "项契约检查 · {seconds} 秒",
    ),
    "line.contract": ("G0 contract   {parts}", "G0 契约   {parts}"),
    "line.not_run": (
        "not judged in this run (skipped is not passed): {what}",
        "本次未比对 (跳过不等于通过): {what}",
    ),
    "line.report": ("report: {paths}", "报告: {paths}"),
    "not_run.quick": ("G2, G3 and G5 (--quick)", "G2, G3 与 G5 (--quick)"),
    "not_run.full": ("G1 and G5 (nets of full size)", "G1 与 G5 (完整规模网络)"),
    "not_run.dtypes": ("{dtypes} (--dtype)", "{dtypes} (--dtype)"),
    "not_run.size": ("thin nets of full depth (--size tiny)", "全深度的窄网络 (--size tiny)"),
    "not_run.thin_quick": ("thin nets of full depth", "全深度的窄网络"),
    "not_run.model": ("nets other than {model} (--model)", "{model} 以外的网络 (--model)"),
    "not_run.checkpoint": (
        "single layers and every other net (--checkpoint)",
        "单层用例及其他网络 (--checkpoint)",
    ),
    "not_run.deselected": ("{count} runs deselected (-k, -m)", "{count} 次运行被筛除 (-k, -m)"),
    "not_run.skipped": ("{count} runs skipped: {reason}", "{count} 次运行被跳过: {reason}"),
    "not_run.other_form": (
        "{count} runs of composed parts and nets in other formulations, whose parts are judged there and whose wiring "
        "in float64 (--every)",
        "{count} 次组合部件与网络在其他实现形式下的运行: 各部件已在该形式下比对, 组合方式以 float64 比对 (--every)",
    ),
    "not_run.other_half": (
        "{count} runs of composed parts and nets in emulated bf16, which no registered bug needs and fp16 repeats on a "
        "finer grid (--every)",
        "{count} 次组合部件与网络的模拟 bf16 运行: 没有已登记的缺陷依赖它, fp16 以更细的网格重复 (--every)",
    ),
    "not_run.unrecorded": (
        "{count} cases of this version (single layers, functions, other nets), which the bundle does not hold",
        "本版本的 {count} 个用例 (单层、函数、其他网络), 记录包中没有",
    ),
    "not_run.unchosen": (
        "{count} recorded cases (--case, --dtype)",
        "{count} 个已记录的用例 (--case, --dtype)",
    ),
    "not_run.unrecorded_dtypes": ("{dtypes} (not recorded, or --dtype)", "{dtypes} (未记录, 或 --dtype)"),
    "not_run.gradients": (
        "gradients of cases recorded without --gradients",
        "未以 --gradients 记录的用例的梯度",
    ),
    "not_run.no_semantics": ("G1, float64 (semantics=False)", "G1, float64 (已设 semantics=False)"),
    "not_run.no_dtypes": ("G2 (no dtypes)", "G2 (未指定 dtypes)"),
    "not_run.no_gradients": (
        "G5, gradients (gradients=True or --gradients judges them)",
        "G5, 梯度 (以 gradients=True 或 --gradients 比对)",
    ),
    "not_run.live": (
        "drift over many steps, samplers and graph mode, which need torch beside the port",
        "多步漂移、采样器与图模式 (需要 torch 同机运行)",
    ),
    "not_run.stages": (
        "layers inside the stages of nets recorded stage by stage",
        "按阶段记录的网络的阶段内部各层",
    ),
    "not_run.stages_but": (
        "layers inside the stages of nets recorded stage by stage; those of {inside} if they fail",
        "按阶段记录的网络的阶段内部各层; {inside} 的内部各层仅在失败时比对",
    ),
    "not_run.sampled": (
        "single values outside {count} fixed positions of each larger result, which its norm, sum, extremes and "
        "non-finite counts bound",
        "较大结果中 {count} 个固定位置以外的单个数值 (由其范数、和、极值与非有限值个数约束)",
    ),
    "not_run.device": (
        "the port on a device other than {device}",
        "{device} 以外的设备",
    ),
    # --- header
    "header.versions": (
        "device {device} · MindSpore {mindspore} ({settings}) · torch {torch} CPU · numpy {numpy}",
        "设备 {device} · MindSpore {mindspore} ({settings}) · torch {torch} CPU · numpy {numpy}",
    ),
    "header.rules": (
        "truth float64 torch · control torch in the tested dtype · seeds per parameter and input name, case seed 0",
        "真值 float64 torch · 标杆 相同数据类型的 torch · 每个参数与输入按名称取种子, 用例种子 0",
    ),
    "header.score": (
        "mutation score of this suite {killed}/{detectable} cells of {bugs} port bugs · no alarm on the correct port "
        "in {runs} runs, seeds {seeds}",
        "本套件的变异得分 {killed}/{detectable} ({bugs} 个移植缺陷) · "
        "正确移植在 {runs} 次运行中无误报, 随机种子 {seeds} 个",
    ),
    "header.score_old": (
        "mutation score of this suite: not measured for this state of the code (python -m parity mutants --store)",
        "本套件的变异得分: 当前代码状态尚未测量 (python -m parity mutants --store)",
    ),
    "header.emulated": (
        "{dtypes}: emulated (inputs and weights rounded once, float32 accumulation, one rounding per operation; "
        "MindSpore has no bf16 kernels on the CPU)",
        "{dtypes}: 模拟 (输入与权重舍入一次, float32 累加, 每个算子舍入一次; MindSpore 在 CPU 上没有 bf16 算子)",
    ),
    "header.control_plain": (
        "control for {dtype}: plain torch, as the fingerprint of the device shows: {reason}",
        "{dtype} 的标杆: 普通 torch, 依据设备指纹: {reason}",
    ),
    "header.control_rounded": (
        "control for {dtype}: torch whose float32 products take rounded inputs ({formats}), as the fingerprint of the "
        "device shows: {reason}; float64 gates do not depend on it",
        "{dtype} 的标杆: float32 乘积的输入先舍入 ({formats}) 的 torch, 依据设备指纹: {reason}; 与 float64 关卡无关",
    ),
    "header.control_strict": (
        "control for {dtype}: plain torch, which may ask more of this device than it can give, never less: {reason}",
        "{dtype} 的标杆: 普通 torch, 对该设备可能过严, 但不会放宽: {reason}",
    ),
    "header.weights": (
        "weights {path} · {layout} of {model} · {count} tensors · content sha256 {digest}",
        "权重 {path} · {model} 的 {layout} 格式 · {count} 个张量 · 内容 sha256 {digest}",
    ),
    # --- failure messages
    "fail.head": (
        "{case} ({gate} {dtype}, formulation {form}) disagrees",
        "{case} ({gate} {dtype}, 实现形式 {form}) 不一致",
    ),
    "fail.check": ("  G0 {check}: {detail}", "  G0 {check}: {detail}"),
    "fail.failed": ("failed", "失败"),
    "fail.nothing": ("  nothing was compared: absent is failed", "  没有可比对的内容: 缺失即失败"),
    "fail.culprit": (
        "  first culprit: {name} {shape} [{verdict}]",
        "  首个问题层: {name} {shape} [{verdict}]",
    ),
    "fail.reason": ("  {reason}", "  {reason}"),
    "fail.diagnosis": ("  {line}", "  {line}"),
    "fail.torch": ("  torch : {place}", "  torch : {place}"),
    "fail.port": ("  port  : {place}", "  移植  : {place}"),
    "fail.worst": ("  worst : {line}", "  最差  : {line}"),
    "fail.required": ("  required {required}  allowed {allowed}", "  实际 {required}  允许 {allowed}"),
    "fail.names": ("  further culprits: {names}", "  其他问题层: {names}"),
    "fail.downstream": ("  downstream: {what}", "  下游影响: {what}"),
    "fail.repro": ("  one file: {command}", "  打包: {command}"),
    "fail.same": ("the same in {count} more", "另有 {count} 处相同"),
    "fail.reproduce": ("  reproduce: {command}", "  复现: {command}"),
    "fail.report": ("  report: {place}", "  报告: {place}"),
    "note.more": (
        "{count} more failures, in the report",
        "另有 {count} 个失败, 见报告",
    ),
    # --- Markdown
    "md.title": ("# Parity", "# 精度比对"),
    "md.head": (
        "| case | gate | dtype | formulation | taps | worst tap | local | ratio | output | verdict |",
        "| 用例 | 关卡 | 类型 | 实现形式 | 观测点 | 最差层 | 单层误差 | 误差比 | 输出误差 | 结论 |",
    ),
    "md.rest": (
        "\n{count} further runs of single layers passed (parity.csv lists them).",
        "\n另有 {count} 次单层运行通过 (见 parity.csv)。",
    ),
    # --- the page
    "page.title": ("Parity report", "精度比对报告"),
    "page.passed": ("PASS", "通过"),
    "page.failed": ("FAIL", "失败"),
    "page.nothing": ("NOTHING RAN", "没有运行"),
    "page.summary": ("Summary", "概览"),
    "page.rules": ("Gates and limits", "关卡与限值"),
    "page.failures": ("Failures", "失败"),
    "page.contract": ("Contract (G0)", "契约 (G0)"),
    "page.nets": ("Whole nets", "完整网络"),
    "page.spread": ("Distributions", "分布"),
    "page.all": ("All taps", "全部观测点"),
    "page.how": (
        "Local error: the layer alone, on the reference's own input; it tells which layer is wrong. Propagated error: "
        "the free run; it tells what becomes of it. Both are relative L2 distances from a float64 truth. Ratio: error "
        "of the port over that of torch in the same precision (G1: share of the limit); it decides.",
        "单层误差: 该层单独运行, 输入与标杆相同, 用于定位问题层。累积误差: 整网自由运行, 反映误差的传播。两者都是"
        "相对 float64 真值的相对误差 (L2)。误差比: 移植的误差除以同精度 torch 的误差 (G1: 占限值的比例), 以此判定。",
    ),
    "page.gate": ("gate", "关卡"),
    "page.question": ("question", "问题"),
    "page.rule": ("rule", "规则"),
    "page.dtype": ("dtype", "类型"),
    "page.form": ("formulation", "实现形式"),
    "page.cases": ("cases passed", "通过用例"),
    "page.taps": ("taps", "观测点"),
    "page.worst": ("worst tap", "最差层"),
    "page.seconds": ("s", "秒"),
    "page.check": ("check", "检查项"),
    "page.held": ("held", "符合"),
    "page.broken": ("broken", "不符合"),
    "page.case": ("case", "用例"),
    "page.detail": ("detail", "说明"),
    "page.verdicts": ("Verdict words", "结论说明"),
    "page.limits": ("Limits per dtype", "各类型限值"),
    "page.u": ("unit roundoff u", "单位舍入误差 u"),
    "page.ratio_fail": ("ratio fails above", "误差比失败阈值"),
    "page.ratio_warn": ("ratio warns above", "误差比警告阈值"),
    "page.op": ("single operation at least", "单算子至少允许"),
    "page.floor": ("floor of the reference's error", "标杆误差下限"),
    "page.max_ratio": ("largest element, ratio", "最大元素误差比"),
    "page.end": ("propagated, ratio", "累积误差比"),
    "page.cap": ("reference itself at most", "标杆自身上限"),
    "page.no_failures": ("No failure.", "没有失败。"),
    "page.contract_held": ("Every contract check held.", "所有契约检查均符合。"),
    "page.growth": ("Error over depth", "误差随深度的变化"),
    "page.growth_local": ("local", "单层"),
    "page.growth_prop": ("propagated", "累积"),
    "page.axis_depth": ("stages in order of execution", "按执行顺序的各阶段"),
    "page.axis_ratio": ("ratio", "误差比"),
    "page.limit": ("limit", "限值"),
    "page.training": ("Training", "训练"),
    "page.losses": ("loss (gap: dropped)", "各步损失（断点：被丢弃的步）"),
    "page.loss_drift": ("loss against float64", "损失与 float64 的相对偏差"),
    "page.axis_steps": ("{count} micro steps", "{count} 个微步"),
    "page.spread_of": ("{title}: {count} taps", "{title}: {count} 个观测点"),
    "page.values": ("Values of the worst tap: {tap}", "最差层的数值分布: {tap}"),
    "page.copy": ("copy", "复制"),
    "page.noscript": (
        "Trees and the list of all taps need JavaScript; everything else on this page does not.",
        "模块树与全部观测点列表需要 JavaScript, 其余内容不需要。",
    ),
    "page.notes": ("Notes", "备注"),
    "page.foot": (
        "Written by pytest parity/. The same results are in parity.csv, parity.json and parity.md beside this file.",
        "由 pytest parity/ 生成。相同的结果见同目录的 parity.csv、parity.json 与 parity.md。",
    ),
    "page.open": ("show its taps", "查看其观测点"),
    # --- what the page's script shows; handed to it as they are
    "js.search": ("search taps, cases, reasons", "搜索层、用例、原因"),
    "js.all": ("all", "全部"),
    "js.gate": ("gate", "关卡"),
    "js.case": ("case", "用例"),
    "js.verdict": ("verdict", "结论"),
    "js.level": ("level", "级别"),
    "js.shown": ("{shown} of {total}", "{shown} / {total}"),
    "js.more": ("show more", "显示更多"),
    "js.local": ("local", "单层"),
    "js.prop": ("propagated", "累积"),
    "js.module": ("module", "模块"),
    "js.open_all": ("open all", "全部展开"),
    "js.close_all": ("close all", "全部收起"),
    "js.equal": ("{count} equal rows, ratio <= {worst}", "{count} 行相同结论, 误差比 <= {worst}"),
    "js.colour": ("colour: ratio, worst tap inside", "颜色: 误差比, 取内部最差"),
    "js.reset": ("reset", "重置"),
    "js.copied": ("copied", "已复制"),
    "js.nothing": ("nothing matches", "没有匹配项"),
    "js.net": ("net", "网络"),
    "js.required": ("required {required}, allowed {allowed}", "实际 {required}, 允许 {allowed}"),
}

# Sentences of the judge (reasons, contract details, notes) as gates.py, behaviour.py and runner.py write them, and
# their translation. A field called `reason` is itself such a sentence. The first that fits counts.
REASONS: list[tuple[str, str]] = [
    (
        "{reason}; every layer is right on its own input, the first wrong result is that of {tap}",
        "{reason}; 每层在标杆输入下均正确, 首个出错的结果是 {tap}",
    ),
    ("{reason}; the first layer whose result goes wrong is {tap}", "{reason}; 首个结果出错的层是 {tap}"),
    ("{reason}; of its {n} results number {i} is the worst", "{reason}; 其 {n} 个结果中第 {i} 个最差"),
    ("its parts agree, their combination does not: {reason}", "各子层一致, 组合不一致: {reason}"),
    (
        "as an operation it may be {e} off, {k} times torch's error, but that explains {tap}: {reason}",
        "单个算子允许误差 {e} (torch 的 {k} 倍), 但它足以解释 {tap}: {reason}",
    ),
    ("shape {a} of the port, {b} of the reference", "移植的形状 {a}, 标杆的形状 {b}"),
    ("{a} outputs of the port, {b} of the reference", "移植有 {a} 个输出, 标杆有 {b} 个"),
    ("empty output: nothing was compared", "输出为空: 没有可比对的内容"),
    ("no finite value: nothing was compared", "没有有限值: 没有可比对的内容"),
    (
        "values of the port are not representable in {dtype}: a rounding is missing",
        "移植的数值无法用 {dtype} 表示: 缺少一次舍入",
    ),
    (
        "float64 results differ by {e} on the reference's input (limit {limit}, {gate})",
        "标杆输入下 float64 结果的相对误差为 {e} (限值 {limit}, {gate})",
    ),
    (
        "float64 results differ by {e} at the end of the run (limit {limit}, {gate})",
        "整网运行后 float64 结果的相对误差为 {e} (限值 {limit}, {gate})",
    ),
    (
        "error {e} against {r} of torch {dtype} on the same input; "
        "allowed max({k} x reference, {op}) = {allowed} ({gate})",
        "相对误差 {e}, 相同输入下 torch {dtype} 为 {r}; 允许 max({k} x 标杆, {op}) = {allowed} ({gate})",
    ),
    (
        "error is {rho} times that of torch {dtype} on the same input "
        "({e} against max({r}, {floor})); allowed {k} ({gate})",
        "误差是相同输入下 torch {dtype} 的 {rho} 倍 ({e} 对 max({r}, {floor})); 允许 {k} 倍 ({gate})",
    ),
    (
        "largest error {m} rms against {r} of torch {dtype}; allowed {allowed} ({k} x, {gate})",
        "最大元素误差 {m} rms, torch {dtype} 为 {r}; 允许 {allowed} ({k} 倍, {gate})",
    ),
    ("ratio {rho} above {k}", "误差比 {rho} 高于 {k}"),
    ("the control itself is {e} off (cap {cap})", "标杆自身的相对误差为 {e} (上限 {cap})"),
    (
        "propagated error {e} against {r} of torch {dtype}; allowed {allowed} ({gate})",
        "累积误差 {e}, torch {dtype} 为 {r}; 允许 {allowed} ({gate})",
    ),
    (
        "gradient is {e} off, that of torch {dtype} {r}; allowed {allowed} ({gate})",
        "梯度的相对误差为 {e}, torch {dtype} 为 {r}; 允许 {allowed} ({gate})",
    ),
    *(
        (
            f"the {who} {verb} {{value}} at {{count}} of {{size}} elements where the truth differs",
            f"{wer}在 {{count}}/{{size}} 个元素上{tut} {{value}}, 与真值不符",
        )
        for who, wer in (("port", "移植"), ("reference", "标杆"))
        for verb, tut in (("has", "出现"), ("lacks", "缺少"))
    ),
    (
        "the compiled result is {e} off, that of torch {dtype} {r}; allowed {allowed}, or "
        "the bits of PyNative ({gate})",
        "编译结果的相对误差为 {e}, torch {dtype} 为 {r}; 允许 {allowed}, 或与 PyNative 逐位相同 ({gate})",
    ),
    (
        "step {step} drifted {e} from the truth, torch {dtype} {r}, started one ulp away {noise}; allowed {k} times "
        "the larger or the floor, {allowed} ({gate})",
        "第 {step} 步相对真值漂移 {e}, torch {dtype} 为 {r}, 初值相差 1 ULP 时为 {noise}; "
        "允许较大者 (或下限) 的 {k} 倍, {allowed} ({gate})",
    ),
    (
        "{name}: {e} off, torch {dtype} {r}, started one unit away {noise}; allowed {allowed} ({gate})",
        "{name}: 误差 {e}, torch {dtype} 为 {r}, 初值相差 1 ULP 时为 {noise}; 允许 {allowed} ({gate})",
    ),
    ("micro step {step}: {facts}", "第 {step} 个微步: {facts}"),
    ("step {step} is {e} off; allowed {allowed} ({gate})", "第 {step} 步误差 {e}; 允许 {allowed} ({gate})"),
    ("inside {stage} the port does not run {layers}", "{stage} 内部: 移植侧未运行 {layers}"),
    ("the bits of PyNative", "与 PyNative 逐位相同"),
    ("other bits than PyNative", "与 PyNative 并非逐位相同"),
    ("trajectories of {lengths} steps", "轨迹步数为 {lengths}"),
    ("the mode reads back as {mode}", "读回的模式是 {mode}"),
    (
        "not looked for: earlier failures took the {seconds} s of a session; run it alone",
        "未诊断: 先前的失败已用完一次会话的 {seconds} 秒; 请单独运行",
    ),
    ("from {tap}", "来自 {tap}"),
    ("not equal on both sides: {names}", "两侧不一致: {names}"),
    ("constant, could hide a bug: {names}", "为常数, 可能掩盖问题: {names}"),
    ("weights of the file that could hide a bug: {names}", "文件中的权重可能掩盖问题: {names}"),
    (
        "the net gives 0 everywhere, whatever its layers do: such weights prove nothing (adaLN-Zero before training?)",
        "无论各层如何计算, 网络的输出处处为 0: 这些权重证明不了什么 (训练前的 adaLN-Zero?)",
    ),
    ("{a} of {b} differ bitwise from the source: {names}", "{b} 个中有 {a} 个与来源逐位不同: {names}"),
    ("{count} bitwise equal", "{count} 个逐位相同"),
    ("{who} lacks {a}, has in addition {b}", "{who} 缺少 {a}, 多出 {b}"),
    ("no tensor comes out of {taps}", "{taps} 没有输出张量"),
    ("modules run in another order from {tap} on", "自 {tap} 起模块执行顺序不同"),
    ("taps change the result", "取数改变了结果"),
    ("two runs differ: nondeterministic", "两次运行结果不同: 不确定性"),
    ("two runs differ in {names}", "两次运行在 {names} 上不同"),
    ("bitwise equal with and without taps", "有无取数均逐位相同"),
    ("not differentiated on both sides: {names}", "并非两侧都求导: {names}"),
    ("peak memory {size} GiB (PSS of judge and workers)", "内存峰值 {size} GiB (判定进程与工作进程的 PSS)"),
    (
        "{count} taps inherited the error; final propagated error {e} ({r} of torch); {reason}",
        "{count} 个观测点继承了误差; 最终累积误差 {e} (torch 为 {r}); {reason}",
    ),
    (
        "{count} taps inherited the error; final propagated error {e}; {reason}",
        "{count} 个观测点继承了误差; 最终累积误差 {e}; {reason}",
    ),
    ("{count} taps inherited the error; {reason}", "{count} 个观测点继承了误差; {reason}"),
    ("no second culprit (teacher-forced)", "没有第二个问题层 (各层输入同标杆)"),
    ("{count} further culprits", "另有 {count} 个问题层"),
    (
        "looks like {bug}, {fit}, explains {share} of the error (next: {next}); here the same as {others}",
        "疑似: {bug}, {fit}, 可解释误差的 {share} (其次: {next}); 此处与 {others} 无法区分",
    ),
    (
        "looks like {bug}, {fit}, explains {share} of the error (next: {next})",
        "疑似: {bug}, {fit}, 可解释误差的 {share} (其次: {next})",
    ),
    ("looks like {bug}: it gives results of this shape", "疑似: {bug}: 它产生同样形状的结果"),
    ("no registered bug gives results of this shape ({tried})", "没有已登记的问题会产生这种形状 ({tried})"),
    ("no registered bug fits ({tried})", "没有匹配的已登记问题 ({tried})"),
    ("nearest: {bug}, {fit}, explains {share} of the error", "最接近: {bug}, {fit}, 可解释误差的 {share}"),
    ("nothing finite to project: no registered bug can be named", "没有有限值: 无法判断是哪个已登记的问题"),
    (
        "signatures are not computed at full size; the thin net of this model names the bug",
        "完整规模下不计算特征; 同一模型的窄网络可判断问题",
    ),
    ("true float32 in matmul and convolution", "矩阵乘与卷积均为真正的 float32"),
    ("inputs of every product are rounded to {format}", "所有乘积的输入舍入到 {format}"),
    ("inputs of matmul are {a}, of convolution {b}", "矩阵乘的输入为 {a}, 卷积的输入为 {b}"),
    ("{dtype} inputs, float32 accumulation, one rounding", "{dtype} 输入, float32 累加, 舍入一次"),
    (
        "products of {dtype} are added in {width}; the control adds in float32",
        "{dtype} 的乘积以 {width} 累加; 标杆以 float32 累加",
    ),
    (
        "the device rounds to {dtype} by {rule}; the control rounds to nearest even",
        "设备以 {rule} 舍入到 {dtype}; 标杆舍入到最近偶数",
    ),
    (
        "inputs of {unit} are rounded by {rule}; the control rounds to nearest even",
        "{unit} 的输入以 {rule} 舍入; 标杆舍入到最近偶数",
    ),
    ("no emulation of {what}", "无法模拟 {what}"),
    ("as it was recorded", "与记录时相同"),
    ("[{place}] port {c}  ref {r}  truth {t}", "[{place}] 移植 {c}  标杆 {r}  真值 {t}"),
]
# Parts of a list that is joined by semicolons.
ITEMS: list[tuple[str, str]] = [
    ("{name}: port {a}, reference {b}", "{name}: 移植 {a}, 标杆 {b}"),
    ("{tap}: {a} instead of {b}", "{tap}: {a}, 应为 {b}"),
    ("{name}: the port returns {a}, the reference {b}", "{name}: 移植返回 {a}, 标杆返回 {b}"),
    (
        "{table} is in no checkpoint, and the port constructs another one: {e} off, allowed {allowed}",
        "{table} 不在任何检查点中, 而移植构造的表不同: 误差 {e}, 允许 {allowed}",
    ),
    (
        "{table} is trainable in the port, a fixed table of the reference",
        "{table} 在移植中可训练, 在标杆中是固定表",
    ),
]


# Texts of TABLE that results keep in English, too, and that are translated when they are shown.
KEPT = ("header.", "not_run.")


class Words:
    """The table in one language. Raises ValueError for a language that it does not have."""

    def __init__(self, lang: str = "en"):
        if lang not in LANGUAGES:
            raise ValueError(f"language {lang!r}; expected {' or '.join(LANGUAGES)}")
        self.lang = lang

    def __call__(self, key: str, **values: object) -> str:
        """One text, its placeholders filled; limits are read at this moment."""
        text = TABLE[key][LANGUAGES.index(self.lang)]
        return text.format(
            LIMITS=LIMITS, SEMANTIC=SEMANTIC, VANISHED=VANISHED, DEVIATIONS=DEVIATIONS, **values
        )

    def check(self, name: str) -> str:
        """Name of a contract check; one that the table does not know stays as it is."""
        return self(f"check.{name}") if f"check.{name}" in TABLE else name

    def raw(self, key: str) -> str:
        """A text with its placeholders, for the page's script to fill."""
        return TABLE[key][LANGUAGES.index(self.lang)]

    def translate(self, sentence: str) -> str:
        """A sentence of the judge in this language; one that REASONS does not know stays as it is."""
        if self.lang == "en" or not sentence:
            return sentence
        whole = self._fit(sentence, [*(TABLE[key] for key in TABLE if key.startswith(KEPT)), *REASONS])
        if whole is not None:
            return whole
        parts = sentence.split("; ")
        return "; ".join(self._fit(part, ITEMS) or part for part in parts)

    def _fit(self, sentence: str, rows: list[tuple[str, str]]) -> str | None:
        for source, translated in rows:
            found = _pattern(source).fullmatch(sentence)
            if found:
                fields = found.groupdict()
                if "reason" in fields:
                    fields["reason"] = self.translate(fields["reason"])
                return translated.format(**fields)
        return None


EN = Words()


@cache
def _pattern(source: str) -> re.Pattern:
    pieces = re.split(r"\{(\w+)\}", source)  # text, field, text, field, ..., text
    pattern = "".join(f"(?P<{p}>.*?)" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
    return re.compile(pattern, re.DOTALL)


def width(text: str) -> int:
    """Columns that a text takes in a terminal: wide and fullwidth characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def pad(text: str, columns: int, right: bool = False) -> str:
    """Fill to a width with blanks, on the right or (right=True) on the left."""
    blanks = " " * max(columns - width(text), 0)
    return blanks + text if right else text + blanks


def clip(text: str, columns: int) -> str:
    """Shorten to a width, with an ellipsis."""
    if width(text) <= columns:
        return text
    while text and width(text) > columns - 1:
        text = text[:-1]
    return text + "…"
