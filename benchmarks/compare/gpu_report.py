"""The report of gpu.sh for people, in Markdown."""

from typing import Any


def markdown(found: dict[str, Any]) -> list[str]:
    """The report for people: a table of each part's results, and how it ended."""
    failed = [name for name, part in found.items() if part["code"]]
    lines = ["# GPU report", "", f"Failed: {', '.join(failed)}" if failed else "Nothing failed."]
    for name, part in found.items():
        ended = {0: "done", 124: "**out of time**"}.get(part["code"], f"**exit code {part['code']}**")
        lines += ["", f"## {name}: {ended}, {part['seconds']} s", ""]
        rows = [result for result in part["results"] if "label" in result]
        if rows:
            columns = [column for column in dict.fromkeys(key for row in rows for key in row) if column != "profile"]
            lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            lines += [f"| {' | '.join(shown(row.get(column)) for column in columns)} |" for row in rows]
            lines += [
                text
                for row in rows
                if row.get("profile")
                for text in ("", f"`{row['label']}`, one step:", "", "```", row["profile"], "```")
            ]
        else:
            lines += ["```", *part["last_lines"], "```"]
    return lines


def shown(value: object) -> str:
    """A number with as many digits as it has meaning."""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
