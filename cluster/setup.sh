#!/usr/bin/env bash
# Make a node ready, before Ray starts on it: the tested packages, and the environment of every later shell.
#
#   setup.sh STORAGE      an address such as s3://bucket/beamclip, or a folder that all nodes mount at one path
#
# Nothing is installed where an image brought the packages; see Dockerfile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

storage=${1:?"give the address or folder that all nodes share, such as s3://bucket/beamclip"}
environment=$HOME/beamclip-env
settings=$HOME/.beamclip
python=${BEAMCLIP_PYTHON:-python3}

"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || {
    echo "$(hostname): beamclip needs Python 3.11, 3.12 or 3.13, and '$python' is $("$python" --version 2>&1)." \
        "Install one, or name it: BEAMCLIP_PYTHON=python3.12 in setup_commands." >&2
    exit 1
}
[[ $storage == *://* ]] || mkdir -p "$storage" && [[ $storage == *://* || -w $storage ]] || {
    echo "$(hostname): $storage is no folder that $(id -un) can write to. Mount it on every node." >&2
    exit 1
}

# Ray refuses nodes whose versions of Ray or Python differ, so all install the same set.
wanted=$(cat constraints.txt pyproject.toml | sha256sum | cut -d' ' -f1)
installed=$(cat "$environment/.beamclip-installed" 2>/dev/null || true)
# One that was made without Debian's python3-venv has no pip.
test -x "$environment/bin/pip" || test "$installed" = "$wanted" || "$python" -m venv --clear "$environment"
if [ "$installed" != "$wanted" ]; then
    echo "$(hostname): installing the tested set of packages"
    "$environment/bin/pip" install --progress-bar off -c constraints.txt -e '.[aws,export,ingest,optuna,transformers,wordnet]'
    echo "$wanted" > "$environment/.beamclip-installed"
fi
cat > "$settings" <<SETTINGS
export PATH=$environment/bin:\$PATH
# The code that was sent here comes before that of an image, and after that of a job. Where Ray was started through
# SSH, bash reads this again in each of Ray's processes.
case :\${PYTHONPATH:-}: in *:$PWD:*) ;; *) export PYTHONPATH=\${PYTHONPATH:+\$PYTHONPATH:}$PWD ;; esac
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export BEAMCLIP_STORAGE=\${BEAMCLIP_STORAGE:-$(printf %q "$storage")}
# Every command on a node joins this cluster; RAY_ADDRESS=local starts a Ray of its own.
export RAY_ADDRESS=\${RAY_ADDRESS:-auto}
# Only the head has the server; commands run there, and workers send their records to them.
export MLFLOW_TRACKING_URI=\${MLFLOW_TRACKING_URI:-http://127.0.0.1:5000}
test ! -e ~/.beamclip-cluster || export BEAMCLIP_CLUSTER=\$(cat ~/.beamclip-cluster)
# A job brings its own.
test ! -e ~/.beamclip-commit || export BEAMCLIP_COMMIT=\${BEAMCLIP_COMMIT:-\$(cat ~/.beamclip-commit)}
SETTINGS
# At the top: Ubuntu's own file ends there for a shell that nobody types into.
grep -qsF '. ~/.beamclip' ~/.bashrc || {
    touch ~/.bashrc
    sed -i '1i test ! -e ~/.beamclip || . ~/.beamclip' ~/.bashrc 2>/dev/null
    grep -qF '. ~/.beamclip' ~/.bashrc || echo 'test ! -e ~/.beamclip || . ~/.beamclip' >> ~/.bashrc
}
