#!/bin/sh
# Runs the checks and every test program of a build folder, as many programs at a time as there are processors, and
# ends with a line "N passed, N failed" (test cases). Cases that say "case skipped: ..." (no device, no time) are
# neither: a line in front says how many there are.
# usage: tests/run.sh BUILD_DIR
set -u
build=${1:?usage: tests/run.sh BUILD_DIR}
here=$(cd "$(dirname "$0")" && pwd)
passed=0
failed=0
skipped=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export logs

check() { # check NAME COMMAND...: a check that counts as one test
    name=$1
    shift
    if "$@" >"$logs/$name" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $name"
    else
        failed=$((failed + 1))
        echo "FAILED  $name"
        cat "$logs/$name"
    fi
}

# count NAME STATUS SECONDS: what the test program NAME said and how it ended
count() {
    log=$logs/$1
    # doctest ends with: [doctest] test cases: 12 | 12 passed | 0 failed | 0 skipped
    counts=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | sed -n 's/.*test cases: *[0-9]* *| *\([0-9]*\) passed *| *\([0-9]*\) failed.*/\1 \2/p' | tail -n 1)
    good=${counts% *}
    bad=${counts#* }
    if [ -z "$counts" ]; then good=0 bad=1; fi                  # it did not get to its end
    if [ "$2" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi       # it died after its count
    left_out=$(grep -c 'MESSAGE: case skipped: ' "$log")
    if [ -z "$counts" ]; then left_out=0; fi
    good=$((good - left_out)) # doctest counts them as passed
    passed=$((passed + good))
    failed=$((failed + bad))
    skipped=$((skipped + left_out))
    if [ "$bad" -eq 0 ]; then
        if [ "$left_out" -eq 0 ]; then
            echo "ok      $1 ($good cases, $3 s)"
        elif [ "$good" -eq 0 ]; then
            echo "skipped $1 ($left_out cases)"
        else
            echo "ok      $1 ($good cases, $left_out skipped, $3 s)"
        fi
        grep -o 'skipped: .*' "$log" | sort -u | sed 's/^/        /'
    else
        echo "FAILED  $1 ($bad of $((good + bad)) cases, exit status $2)"
        cat "$log"
    fi
}

check include_directions "$here/check_includes.sh"

programs=0
for program in "$build"/tests/*_test; do programs=$((programs + 1)); done

# Each program that has ended is a line: its name, exit status and seconds.
printf '%s\n' "$build"/tests/*_test | xargs -d '\n' -P "$(nproc)" -I PROGRAM sh -c '
    name=$(basename "$1")
    start=$(date +%s)
    "$1" >"$logs/$name" 2>&1
    echo "$name $? $(($(date +%s) - start))"' sh PROGRAM | {
    ended=0
    while read -r name status seconds; do
        ended=$((ended + 1))
        count "$name" "$status" "$seconds"
    done
    if [ "$ended" -ne "$programs" ]; then
        failed=$((failed + programs - ended))
        echo "FAILED  $((programs - ended)) programs, which did not get to their end"
    fi
    [ "$skipped" -eq 0 ] || echo "$skipped skipped"
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ] && [ "$passed" -gt 1 ]
}
