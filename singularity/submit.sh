#!/bin/bash
# Submit a study to Slurm: an array over the participants that are left, and the group level after it.
#
#   submit.sh CONF [--print] [flags of mmh that choose participants: --failed-only, --participant-label 01 02]
#
# CONF is a copy of cluster.conf. --print shows the commands and submits nothing. What the tasks do and say lies in
# OUT_DIR/logs/slurm/<time>. Give the same command again for what is left; docs/clusters.md tells all.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/mmh-here.sh"
[[ $# -ge 1 ]] || fail "usage: submit.sh CONF [--print] [--failed-only] [--participant-label LABEL ...]"
conf=$(realpath "$1")
shift
run=sbatch
if [[ "${1:-}" == --print ]]; then
    run=show
    shift
fi
load_settings "$conf"

show() { # in place of sbatch
    printf 'sbatch' >&2
    printf ' %q' "$@" >&2
    printf '\n' >&2
    echo JOB
}

plan=$(mktemp)
trap 'rm -f "$plan" "$plan.chunks"' EXIT
# the first line is for people; the columns are for the script below
code=0
(become_mmh "$BIDS_DIR" "$OUT_DIR" participant --dry-run -w "$WORK_DIR" "${FLAGS[@]}" "$@") >"$plan" || code=$?
[[ $code = 0 ]] || exit "$code"

# One line a task with the labels of its participants; on standard output minutes and GB that the largest task needs.
# Who is left: all of whom an image is to be made, and those who were never recorded.
needs=$(awk -F '\t' -v cpus="$CPUS" -v chunk="$CHUNK" -v listed="$OUT_DIR/participants.tsv" -v chunks="$plan.chunks" '
    BEGIN { while ((getline row < listed) > 0) { split(row, cells, "\t"); known[cells[1]] = 1 } }
    { for (i = 1; i <= NF; i++) gsub(/ +$/, "", $i) }
    NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i; next }
    {
        who = $column["file"]; sub(/_.*/, "", who); action = $column["action"]
        if (!(who in seen)) { seen[who] = 1; order[++people] = who }
        if (action == "harmonize") {
            wanted[who] = 1; images[who]++
            if ($column["minutes"] == "n/a") unknown = 1
            minutes[who] += $column["minutes"]
            if ($column["minutes"] > longest) longest = $column["minutes"]
            if ($column["mem_gb"] > gb) gb = $column["mem_gb"]
        } else if (action != "done" && !(who in known)) wanted[who] = 1
    }
    function close_chunk() {
        if (line == "") return
        print line > chunks
        if (sum / cpus > most) most = sum / cpus
        at_once = count < cpus ? count : cpus
        if (at_once > widest) widest = at_once
        line = ""; sum = count = size = 0
    }
    END {
        for (i = 1; i <= people; i++) {
            who = order[i]
            if (!(who in wanted)) continue
            line = line (line == "" ? "" : " ") substr(who, 5); sum += minutes[who]; count += images[who]
            if (++size == chunk) close_chunk()
        }
        close_chunk()
        if (most < longest) most = longest
        printf "%s %.1f\n", unknown ? "unknown" : most, gb * (widest ? widest : 1) + 1
    }' "$plan")
if [[ ! -s "$plan.chunks" ]]; then
    echo "nothing is left to do in $OUT_DIR; the group level: mmh $BIDS_DIR $OUT_DIR group"
    exit 0
fi
read -r minutes gigabytes <<<"$needs"
if [[ -z "$TIME" ]]; then
    [[ "$minutes" != unknown ]] || fail "$conf: nobody knows how long this method takes; set TIME"
    TIME=$(awk -v minutes="$minutes" -v slack="$SLACK" 'BEGIN { print int(minutes * slack) + 10 }')
fi
[[ -n "$MEM" ]] || MEM=$(awk -v gb="$gigabytes" 'BEGIN { print int(gb * 1000) }')
tasks=$(wc -l <"$plan.chunks")
if [[ $run = sbatch ]]; then
    limit=$(scontrol show config | awk '$1 == "MaxArraySize" { print $3 }')
    ((tasks < ${limit:-1001})) || fail "$tasks tasks, and this cluster allows $((limit - 1)) an array: set CHUNK=$(((tasks * CHUNK) / (limit - 1) + 1))"
fi

[[ "$GPU" = 1 ]] || GPU_FLAGS=()
logs=$OUT_DIR/logs/slurm/$(date -u +%Y%m%d-%H%M%S)
if [[ $run = sbatch ]]; then
    mkdir -p "$logs"
    cp "$plan" "$logs/plan.tsv"
    cp "$plan.chunks" "$logs/chunks.txt"
fi
array=$($run --parsable --job-name=mmh --array="1-$tasks%$THROTTLE" --cpus-per-task="$CPUS" --mem="${MEM}M" \
    --time="$TIME" --output="$logs/%a-%A.txt" "${GPU_FLAGS[@]}" "${SBATCH_FLAGS[@]}" \
    "$here/participants.sbatch" "$here" "$conf" "$logs/chunks.txt")
# afterany, not afterok: the group level shows who failed, and with one failure afterok would never begin
group=$($run --parsable --job-name=mmh-group --dependency="afterany:${array%%;*}" --cpus-per-task="$CPUS_GROUP" \
    --mem="${MEM_GROUP}M" --time="$TIME_GROUP" --output="$logs/group-%j.txt" "${SBATCH_FLAGS[@]}" \
    "$here/group.sbatch" "$here" "$conf")
echo "array ${array%%;*}: $tasks task(s), $MEM MB and $TIME minute(s) each; group ${group%%;*}; logs in $logs"
