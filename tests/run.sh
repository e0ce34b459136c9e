#!/bin/sh
# Runs the checks and every test program of a build folder, and ends with a line "N passed, N failed" (test cases).
# Cases that say "case skipped: ..." (no device, no time) are neither: a line in front says how many there are.
# usage: tests/run.sh BUILD_DIR
set -u
build=${1:?usage: tests/run.sh BUILD_DIR}
here=$(cd "$(dirname "$0")" && pwd)
passed=0
failed=0
skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

check() { # check NAME COMMAND...: a check that counts as one test
    name=$1
    shift
    if "$@" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $name"
    else
        failed=$((failed + 1))
        echo "FAILED  $name"
        cat "$log"
    fi
}

check include_directions "$here/check_includes.sh"

for program in "$build"/tests/*_test; do
    name=$(basename "$program")
    start=$(date +%s)
    "$program" >"$log" 2>&1
    status=$?
    seconds=$(($(date +%s) - start))
    # doctest ends with: [doctest] test cases: 12 | 12 passed | 0 failed | 0 skipped
    counts=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | sed -n 's/.*test cases: *[0-9]* *| *\([0-9]*\) passed *| *\([0-9]*\) failed.*/\1 \2/p' | tail -n 1)
    good=${counts% *}
    bad=${counts#* }
    if [ -z "$counts" ]; then good=0 bad=1; fi                      # it did not get to its end
    if [ $status -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi        # it died after its count
    left_out=$(grep -c 'MESSAGE: case skipped: ' "$log")
    if [ -z "$counts" ]; then left_out=0; fi
    good=$((good - left_out)) # doctest counts them as passed
    passed=$((passed + good))
    failed=$((failed + bad))
    skipped=$((skipped + left_out))
    if [ "$bad" -eq 0 ]; then
        if [ "$left_out" -eq 0 ]; then
            echo "ok      $name ($good cases, ${seconds} s)"
        elif [ "$good" -eq 0 ]; then
            echo "skipped $name ($left_out cases)"
        else
            echo "ok      $name ($good cases, $left_out skipped, ${seconds} s)"
        fi
        grep -o 'skipped: .*' "$log" | sort -u | sed 's/^/        /'
    else
        echo "FAILED  $name ($bad of $((good + bad)) cases, exit status $status)"
        cat "$log"
    fi
done

[ "$skipped" -eq 0 ] || echo "$skipped skipped"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 1 ]
