"""python scripts/train.py --config configs/tgrpo_a100.py --model runs/sft_7b --data.media-root Video-R1-data

The paper's T-GRPO run: Qwen2.5-VL-7B after the SFT cold start, 1000 steps of 8 prompts on Video-R1-260k. For a
longer one, as the paper's scaled-up training, give the same command a larger `--steps`, also when it has ended.

Needs    8 x A100 80 GB; the SFT run of configs/sft_a100.py; Video-R1-260k.json with its media.
Expect   reward and accuracy to rise over the first hundreds of steps, answers to shorten and then to grow
         (the paper's figures); `temporal_signal` near zero with the paper's placement of the bonus.

Where it is not what the paper's code did (configs/video_r1_upstream.py is, docs/upstream.md compares):
    8 prompts a step, not 4      there are 8 devices, and none should wait
    a constant learning rate     the code's cosine spans 65,768 steps: after 1000 its rate is still 0.9994 of the
                                 first; this way a run has no length that must be known before it starts
    measured spacing of frames   as Qwen2.5-VL was trained and the code sampled; its loss lost the durations
    no top-k                     the policy that is scored is then the policy that samples, but for top-p
    rules fixed, mu 1, p share   what the paper says, where the code does otherwise

The buckets below hold every video and image that upstream accepts, whatever its shape, with questions of up to
376 tokens, and longer ones where a larger bucket is left. Of videos there are: short ones; those of 1280x720 and
like it; what small clips grow to; and frames wider than 2.4:1, which hardly occur. A run reads the sizes of all
records from their files' headers once, when it starts, unless data.sizes names them; scripts/choose_buckets.py
finds buckets that fit your records tighter.
"""

from vr1_jax.config import DataConfig, MeshConfig, OptimizerConfig, RolloutConfig, TrainConfig
from vr1_jax.data.collate import Bucket
from vr1_jax.rl.advantages import GRPOConfig
from vr1_jax.sampling.settings import SamplingConfig

DATA = DataConfig(
    records=("Video-R1-data/Video-R1-260k.json",),
    media_root="Video-R1-data",
    video_buckets=(
        Bucket(slices=5, patches=576, tokens=960),
        Bucket(slices=8, patches=480, tokens=1216),
        Bucket(slices=8, patches=612, tokens=1600),
        Bucket(slices=8, patches=1032, tokens=2560),
    ),
    image_buckets=(Bucket(slices=1, patches=1024, tokens=448), Bucket(slices=1, patches=1024, tokens=1024)),
)


def get_config() -> TrainConfig:
    return TrainConfig(
        stage="rl",
        model="runs/sft_7b",
        run="runs/tgrpo_7b",
        steps=1000,
        data=DATA,
        prompts_per_step=8,
        mesh=MeshConfig(fsdp=8, tensor=1, rollout_tensor=1),
        rollout=RolloutConfig(
            group=8,
            shuffled_group=4,
            sampling=SamplingConfig(max_new_tokens=768, temperature=1.0, top_p=0.95),
        ),
        grpo=GRPOConfig.paper(),
        optimizer=OptimizerConfig(learning_rate=1e-6, schedule="constant", weight_decay=0.01, clip_norm=5.0),
    )
