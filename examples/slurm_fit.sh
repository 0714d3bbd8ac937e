#!/usr/bin/env bash
# Fit one model on several machines of a SLURM cluster:
#
#     sbatch examples/slurm_fit.sh cells.csv run1
#
# The folder run1 gets the checkpoints and the model. It, the table and the images lie where all nodes see them. When
# time is up, or a node fails, the job goes back into the queue, and goes on after the last completed epoch.
#
# To adapt: the lines of SBATCH, the environment, and the arguments of "skbegan fit". minibatch_size is that of all
# processes together, and a multiple of their number: here 2 nodes x 4 processes.
#
#SBATCH --job-name=skbegan
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120

set -u
table=${1:?the table of cells}
folder=${2:?a folder for checkpoints and the model}
processes=${SLURM_GPUS_ON_NODE:-${PROCESSES:-1}} # of each node: one per card; on nodes without, PROCESSES

# source venv/bin/activate

# The processes meet on the first node. The port differs from job to job.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$((${SLURM_CPUS_PER_TASK:-$processes} / processes))
((OMP_NUM_THREADS > 0)) || export OMP_NUM_THREADS=1

# Two minutes before the end of its time SLURM tells this script. An error of the fit is not tried again.
trap 'scontrol requeue "$SLURM_JOB_ID"' USR1

mkdir -p "$folder"
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "$processes" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 10000))" \
    -m skbegan fit "$table" \
    --bf brightfield --target phase --batch day --cell-type line --image-size 64 \
    --preset balanced --set minibatch_size=64 --seed 0 --no-estimate \
    --checkpoint-dir "$folder/checkpoints" -o "$folder/model.safetensors" &
fit=$!

# The signal ends a wait; the fit then still runs until SLURM ends it.
while true; do
    wait "$fit"
    code=$?
    kill -0 "$fit" 2>/dev/null || exit "$code"
done
