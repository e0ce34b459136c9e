"""Measurements to a table of ratios: best against best, with the medians beside them."""
import statistics


def seconds_text(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def summary(measurements, who, workload):
    """{best, median, count} of what `who` took for a workload, or None"""
    seconds = [m["seconds"] for m in measurements if m["who"] == who and m["workload"] == workload]
    if not seconds:
        return None
    return {"best": min(seconds), "median": statistics.median(seconds), "count": len(seconds)}


def table_rows(measurements, workloads, peers):
    """A row for each workload and peer of which both sides were measured. peers: {peer: ours}"""
    rows = []
    for workload in workloads:
        for peer, ours in peers.items():
            theirs = summary(measurements, peer, workload)
            mine = summary(measurements, ours, workload)
            if theirs and mine:
                rows.append({"workload": workload, "peer": peer, "peer_s": theirs, "engine": ours,
                             "engine_s": mine, "ratio": mine["best"] / theirs["best"]})
    return rows


def markdown(rows):
    lines = [
        "| workload | peer | its time: best (median) | this engine, best (median) | of its time |",
        "|---|---|---|---|---|"
    ]
    for row in rows:
        theirs, mine = (f"{seconds_text(row[key]['best'])} ({seconds_text(row[key]['median'])})"
                        for key in ("peer_s", "engine_s"))
        weights = row["engine"].split()[-1]
        lines.append(f"| {row['workload']} | {row['peer']} | {theirs} | {weights}: {mine} | "
                     f"{row['ratio']:.2f} |")
    return "\n".join(lines)
