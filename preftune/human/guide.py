"""HOW_TO_RATE.md: what a rater must know, in plain words, made from the round's settings."""

from __future__ import annotations

from preftune.human.rounds import Round


def guide(round_: Round) -> str:
    """The text for this round's raters."""
    human, prompts, answers = round_.human, len(round_.prompts), len(round_.answers)
    cut = any(
        round_.collected.groups[answer.prompt].completions[place].finish == "length"
        for answer in round_.answers
        for place in answer.completions
    )
    if human.rate == "score":
        task = (
            f"Give each answer a **score from {human.low:g} to {human.high:g}** in the column `score`: {human.high:g} "
            f"for the best answer that you can imagine, {human.low:g} for one of no use at all. Numbers between whole "
            "ones are fine (7.5).\n\nUse the whole scale, and judge each answer by itself: two equally good ones get "
            "the same score."
        )
    else:
        task = (
            "Rank the answers to each prompt in the column `rank`: **1 for the best**, 2 for the next, and so on. "
            "Answers that are equally good get the same number. Ranks compare answers to one prompt only, so begin "
            "with 1 at every prompt."
        )
    lines = [
        f"# How to rate (round {round_.number})",
        "",
        f"A language model has answered {prompts} prompts, {answers} answers in all. It learns from what you think of "
        "them.",
        "",
        task,
        "",
        "## Filling in the file",
        "",
        "1. Open `answers.csv` in a spreadsheet (text is in UTF-8), or `answers.jsonl` in an editor. One is enough.",
        "2. Write your name into the column `rater`, in the first row; it counts for all rows of your file.",
        f"3. Fill in `{human.rate}` in every row. Please leave none out: a file with holes is sent back with their "
        "line numbers.",
        "4. `comment` is for what you want to say about an answer; it may stay empty.",
        "5. Leave `id`, `prompt` and `answer` as they are. If you sort, sort whole rows.",
        "6. Save as CSV (UTF-8), or JSONL, and send the file back.",
        "",
        "## Good to know",
        "",
        "- Answers to one prompt stand together. Their order is random and says nothing.",
        "- An apostrophe at the very beginning of a text is ours: it keeps spreadsheets from calculating with it.",
        "- An empty answer means that the model wrote nothing. Rate it as that.",
    ]
    if cut:
        lines.append(
            "- Some answers break off: the model may write "
            f"{round_.recipe.sampling.max_tokens} tokens at most. Rate what is there."
        )
    return "\n".join(lines) + "\n"
