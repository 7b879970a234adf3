#!/usr/bin/env bash
# A whole Slurm on this one machine, for the tests of `natal run --on slurm`: Debian's slurm-wlm and munge, as root.
#   tools/slurm_node.sh up      starts it; exit status 1, and one line, where that does not work
#   tools/slurm_node.sh down    ends what `up` has started
# Everything lies in $NATAL_SLURM (/tmp/natal-slurm): nothing of the machine's own configuration is touched. Slurm's
# commands find it by SLURM_CONF=$NATAL_SLURM/slurm.conf.
set -euo pipefail
place=${NATAL_SLURM:-/tmp/natal-slurm}
export SLURM_CONF=$place/slurm.conf PATH=$PATH:/usr/sbin

give_up() { echo "Slurm does not start here: $1" >&2; down; exit 1; }

down() {
  for _ in $(seq 20); do  # jobs first, or their processes stay
    squeue -h -o %A 2>/dev/null | xargs -r scancel 2>/dev/null || true
    [ -n "$(squeue -h 2>/dev/null || true)" ] || break
    sleep 0.5
  done
  for daemon in slurmd slurmctld munged; do
    if [ -s "$place/$daemon.pid" ]; then kill "$(cat "$place/$daemon.pid")" 2>/dev/null || true; fi
  done
}

up() {
  command -v slurmctld slurmd sbatch munged >/dev/null || { echo "Slurm is not installed here" >&2; exit 1; }
  [ "$(id -u)" = 0 ] || { echo "Slurm is not started here: that takes root" >&2; exit 1; }
  mkdir -p "$place/state" "$place/spool" "$place/munge"
  chmod 755 "$place" "$place/munge"
  dd if=/dev/urandom of="$place/munge/key" bs=1024 count=1 status=none
  chown -R munge: "$place/munge"; chmod 400 "$place/munge/key"
  setpriv --reuid=munge --regid=munge --clear-groups munged --force --key-file="$place/munge/key" \
    --socket="$place/munge/socket" --pid-file="$place/munge/pid" --log-file="$place/munge/log" \
    --seed-file="$place/munge/seed" || give_up "munge"
  cp "$place/munge/pid" "$place/munged.pid"
  local host; host=$(hostname -s)
  cat >"$SLURM_CONF" <<CONF
ClusterName=natal
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$place/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
ReturnToService=2
KillWait=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=natal Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  slurmctld -c >"$place/out" 2>&1 || give_up "$(tail -1 "$place/out")"
  slurmd >"$place/out" 2>&1 || give_up "$(tail -1 "$place/out")"
  for _ in $(seq 60); do
    if sinfo -h -o %t 2>/dev/null | grep -q idle; then return; fi
    sleep 0.5
  done
  give_up "$(tail -1 "$place/slurmctld.log")"
}

case ${1:-} in up) up ;; down) down ;; *) sed -n 2,7p "$0"; exit 2 ;; esac
