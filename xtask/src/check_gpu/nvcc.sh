#!/bin/sh
# Stands in for nvcc in type checks: answers `--version`, leaves empty outputs.
case "$1" in
--version) printf 'nvcc: NVIDIA (R) Cuda compiler driver\n-\n-\nCuda compilation tools, release 13.0, V13.0.88\n'; exit 0 ;;
esac
out= folder= ptx= library= last=
while [ $# -gt 0 ]; do
    case "$1" in
    -o) out=$2; shift ;;
    --output-directory) folder=$2; shift ;;
    --ptx) ptx=1 ;;
    --lib) library=1 ;;
    esac
    last=$1
    shift
done
if [ -n "$library" ]; then rm -f "$out"; exec ar crs "$out"; fi
if [ -n "$ptx" ] && [ -n "$folder" ]; then : > "$folder/$(basename "$last" .cu).ptx"; exit 0; fi
: > "$out"
