"""Learning from people: answers go out as files, ratings come back, one step is trained, and again.

    export   prompts ─▶ the policy's answers ─▶ round-N/answers.csv, answers.jsonl, HOW_TO_RATE.md
    import   raters' files ─▶ checked ─▶ round-N/ratings.jsonl, agreement.json
    train    ratings ─▶ one score per answer ─▶ round-N/rated.jsonl ─▶ a run of method `human` in round-N/train

Each step writes its result whole or not at all, and the state of a round is what its files say, so a process that was
killed between two of them loses nothing. Torch is imported where a model is needed, not before.
"""
