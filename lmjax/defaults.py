"""Every config key, declared once with its default and its unit or effect. None means "not set".

The type of a key is that of its default; choices, ranges and the types of keys that default to None are in
lmjax.config. If a run was recorded before a key existed, it is read with the key's default. So the default of a new key
must reproduce the previous behaviour.
"""

from ml_collections import ConfigDict

ROWS = ("data", "fsdp", "expert")  # mesh axes over which the rows of a batch are split
AXES = (*ROWS, "context", "tensor")  # of the mesh


def get_config() -> ConfigDict:
    """Returns the base config: a 3.3M-parameter byte-level decoder on `classic`, 4M tokens."""
    c = ConfigDict()
    c.plugins = ()  # Python files that register objectives, models, optimizers, schedules, laws, tasks or metrics

    c.model = ConfigDict()
    c.model.family = "decoder"  # a name in lmjax.models.MODELS: decoder, encoder, encoder_decoder, rnn, ..., your own
    c.model.vocab_size = None  # rows of the embedding; None: the tokenizer's vocabulary, rounded up to a multiple of 64
    c.model.d_model = 256  # width of the residual stream
    c.model.num_layers = 4  # blocks (of the decoder stack in an encoder-decoder)
    c.model.encoder_layers = None  # blocks of the encoder stack in an encoder-decoder; None: num_layers
    c.model.num_heads = 4  # query heads
    c.model.num_kv_heads = None  # key/value heads (grouped-query attention); None: num_heads
    c.model.head_dim = None  # width of a head; None: d_model / num_heads
    c.model.mlp_dim = None  # hidden width of the feed-forward layer; None: 4 d_model
    c.model.embedding_dim = None  # width of the embedding, projected to d_model if set (ALBERT); None: d_model
    c.model.embedding_norm = False  # a norm after the embeddings (BERT, BLOOM)
    c.model.embedding_scale = 16.0  # factor on token embeddings (initial std 0.02) as they enter the residual stream
    c.model.token_types = None  # rows of a token-type table (BERT); None: no table
    c.model.position = "rotary"  # learned | sinusoidal | rotary | relative (T5) | alibi | none
    c.model.max_len = None  # rows of the learned position table; None: the longest sequence of the data
    c.model.position_offset = 0  # row of position 0 in the learned table (BART and OPT: 2)
    c.model.rotary_base = 10000.0  # the longest wavelength of rotary positions is about 2 pi rotary_base tokens
    c.model.rotary_fraction = 1.0  # share of a head's dimensions that are rotated
    c.model.rotary_scaling = "none"  # none | linear (positions / rotary_factor) | llama3, yarn (long wavelengths only)
    c.model.rotary_factor = 1.0  # factor by which rotary_scaling stretches wavelengths
    c.model.rotary_low_frequency = 1.0  # llama3, yarn: wavelengths above rotary_original_len / this are fully stretched
    c.model.rotary_high_frequency = 4.0  # llama3, yarn (32): wavelengths below rotary_original_len / this do not change
    c.model.rotary_original_len = None  # llama3, yarn: context length before scaling, in tokens
    c.model.relative_buckets = 32  # buckets of T5's relative position bias
    c.model.relative_max_distance = 128  # tokens; all larger distances share the last bucket
    c.model.norm = "layernorm"  # layernorm | rmsnorm
    c.model.norm_position = "pre"  # pre (x + f(norm(x))) | post (norm(x + f(x))) | both (x + norm(f(norm(x))), Gemma 2)
    c.model.norm_epsilon = 1e-5  # added to the variance
    c.model.norm_scale = True  # trainable gains in norms
    c.model.norm_offset = 0.0  # added to trainable gains, which are initialised at 1 - norm_offset (Gemma 2: 1)
    c.model.parallel_block = False  # x + attention(norm(x)) + feed_forward(norm(x)) (GPT-NeoX); pre only
    c.model.attention_scale = None  # factor on query times key; None: 1 / sqrt(head_dim). T5: 1
    c.model.qk_norm = False  # a norm on the queries and the keys of each head (Qwen 3); heads share the gains
    c.model.attention_window = None  # self-attention sees keys less than this many tokens away; None: no limit
    c.model.full_attention_every = None  # every n-th layer ignores attention_window (Gemma 2: 2); None: no layer
    c.model.attention_softcap = None  # scores become cap tanh(scores / cap) (Gemma 2: 50); None: no cap
    c.model.activation = "gelu"  # gelu (tanh form) | gelu_exact | relu | swiglu | geglu; the last two are gated
    c.model.num_experts = None  # experts of a feed-forward layer (mixture of experts); None: one layer for all tokens
    c.model.experts_per_token = 2  # experts that each token is sent to
    c.model.expert_capacity = 1.25  # slots per expert in training, relative to an even load; None: slots for all tokens
    c.model.tie_embeddings = True  # the output projection is the transposed embedding
    c.model.head = "plain"  # plain | transform (dense, activation, norm before it; BERT) | discriminator (1 logit)
    c.model.head_bias = False  # a trainable bias on the logits
    c.model.logit_scale = 1.0  # factor on the logits (T5 with tied embeddings: 1 / sqrt(d_model))
    c.model.logit_softcap = None  # logits become cap tanh(logits / cap) (Gemma 2: 30); None: no cap
    c.model.logit_multiplier = None  # factor on the logits, set by the parametrization; None: 1
    c.model.heads_multiplier = None  # factor on the inputs of the other heads, set by the parametrization; None: 1
    c.model.attention_multiplier = None  # factor on the attention scale, set by the parametrization; None: 1
    c.model.branch_multiplier = None  # factor on every residual branch, set by the parametrization; None: 1
    c.model.router_multiplier = None  # factor on the router's logits, set by the parametrization; None: 1
    c.model.use_bias = False  # biases in dense layers and layernorm
    c.model.share_layers = False  # one block's parameters used at every depth (ALBERT)
    c.model.dropout = 0.0  # probability, after embedding, attention and feed-forward
    c.model.ngram_order = 3  # ngram: length of the longest n-grams, including the predicted token
    c.model.ngram_min_count = 1  # ngram: n-grams of two or more tokens that are rarer than this are dropped
    c.model.dtype = "float32"  # compute dtype, float32 | bfloat16; softmax, norms, loss stay float32
    c.model.scan_layers = False  # scan one compiled block over depth (compiles faster; shallow models run slower)
    c.model.options = ConfigDict()  # options of the family (rnn: cell), declared in its file
    c.model.remat = "none"  # none | dots (keep matmul outputs) | full (keep block inputs); the last two scan the layers

    c.objective = ConfigDict()
    c.objective.name = "causal_lm"  # a name in docs/objectives.md, your own, or "a+b": a applied to the rows of b
    c.objective.file = None  # Python file that adds your own objective to OBJECTIVES; None: built in
    c.objective.options = ConfigDict()  # options of the objective, declared in its file

    c.data = ConfigDict()
    c.data.sources = ("classic",)  # classic, en, code, orders, modular:P, tfds:NAME, files:GLOB, ...: docs/training.md
    c.data.weights = (1.0,)  # share of rows drawn from each source
    c.data.text_field = "text"  # text field of jsonl, parquet and tfds records; for pairs, both fields: "en,de"
    c.data.tokenizer = "bytes"  # bytes | bpe, words (made from the training text) | path of a tokenizer.json
    c.data.vocab_size = None  # ids of bpe (required) or words, special ids included; None: all words
    c.data.num_sentinels = 32  # sentinel ids reserved after the text vocabulary
    c.data.mode = "concat_and_split"  # concat_and_split | consecutive (windows in order) | pack (isolated documents)
    c.data.seq_len = 128  # tokens per row of `inputs`
    c.data.encoder_seq_len = None  # tokens per row of `encoder_inputs` in an encoder-decoder; None: seq_len
    c.data.global_batch_size = 16  # rows per optimizer step, over all devices and accumulation steps
    c.data.validation_fraction = 0.02  # share of documents kept for validation, chosen by a hash of their key
    c.data.unique_tokens = None  # tokens of the training split that are used, of spread documents; None: all
    c.data.max_epochs = 1.0  # largest number of passes over the training split; a longer run is refused before step 0
    c.data.seed = 0  # order of the rows, corruption, and sampling of synthetic sources

    c.duration = ConfigDict()  # exactly one of the four is set; the others are derived and recorded
    c.duration.tokens = 4_000_000  # source tokens
    c.duration.steps = None  # optimizer steps
    c.duration.epochs = None  # passes over the training split
    c.duration.flops = None  # training FLOPs, exact count

    c.optimizer = ConfigDict()
    c.optimizer.name = "adamw"  # adamw | adafactor | lion | muon
    c.optimizer.learning_rate = 2e-3  # peak
    c.optimizer.b1 = 0.9  # decay of the first moment (adamw, lion, muon's Adam part)
    c.optimizer.b2 = 0.99  # decay of the second moment, close to 1 as batches are small (adamw, lion, muon's Adam part)
    c.optimizer.epsilon = 1e-8  # added to the root of the second moment (adamw, muon)
    c.optimizer.weight_decay = 0.1  # multiplied by the learning rate; for matrices and embeddings, not norms and biases
    c.optimizer.clip_norm = 1.0  # largest global gradient norm; None: no clipping

    c.parametrization = ConfigDict()
    c.parametrization.name = "standard"  # standard | mup | completep (mup in width, and branches divided by depth)
    c.parametrization.base_width = None  # model.d_model at which it equals "standard" (see docs/training.md)
    c.parametrization.base_layers = None  # model.num_layers at which it equals "standard" (completep)
    c.parametrization.base_head_dim = None  # model.head_dim at which it equals "standard"; None: head_dim is constant
    c.parametrization.decay = "independent"  # independent | coupled: weight decay is scaled like the learning rate

    c.init = ConfigDict()
    c.init["from"] = None  # RUN[@STEP]: start from this checkpoint of another run, the parent (default: its newest)
    c.init.what = "state"  # state (a branch: continues from the parent's step) | params (parameters only, from step 0)
    c.init.parent = None  # identity of the parent, filled in by lmjax: hash in its run id, @step

    c.schedule = ConfigDict()
    c.schedule.name = "cosine"  # constant | cosine | linear | inverse_sqrt | wsd
    c.schedule.warmup_steps = None  # optimizer steps; None: warmup_fraction of all steps
    c.schedule.warmup_fraction = 0.05  # of all steps
    c.schedule.decay_fraction = 0.2  # of all steps, at the end (wsd)
    c.schedule.decay_shape = "1-sqrt"  # linear | 1-sqrt (wsd)
    c.schedule.final_fraction = 0.1  # of the peak, reached at the last step (cosine, linear, wsd)

    c.train = ConfigDict()
    c.train.seed = 0  # initial parameters and dropout
    c.train.accumulation_steps = 1  # micro-batches per optimizer step: less memory, the same result without dropout
    c.train.load_balancing = 0.01  # factor on the load imbalance of experts (1 if balanced) in the training loss
    c.train.z_loss = 0.0  # factor on log(sum(exp(logits)))^2 in the training loss (PaLM: 1e-4)

    c.evaluation = ConfigDict()
    c.evaluation.every_steps = None  # optimizer steps between evaluations; None: only at the end
    c.evaluation.max_tokens = 262_144  # limit on validation tokens (a fixed set of whole documents); None: all
    c.evaluation.batch_size = 16  # rows; changes speed and memory only, and a loss across the rows of a batch
    c.evaluation.seed = 0  # corruption of the validation text

    c.mesh = ConfigDict()  # devices = data x fsdp x expert x context x tensor
    c.mesh.data = -1  # batch rows are split over this axis; -1: all remaining devices
    c.mesh.fsdp = 1  # batch rows and parameters are split over this axis
    c.mesh.expert = 1  # batch rows and experts are split over this axis; it must divide model.num_experts
    c.mesh.context = 1  # the tokens of long rows are split over this axis; it must divide data.seq_len
    c.mesh.tensor = 1  # heads, feed-forward and vocabulary are split over this axis
    c.mesh.rules = (  # logical axis of an array -> mesh axis
        ("batch", ROWS),
        ("time", "context"),
        ("expert_batch", ("data", "fsdp")),  # rows sent to the experts, which are split over expert
        ("experts", "expert"),
        ("embed", "fsdp"),
        ("heads", "tensor"),
        ("mlp", "tensor"),
        ("vocab", "tensor"),
    )
    c.mesh.platform = None  # required platform: cpu | gpu | tpu; another one is an error. None: use what JAX finds
    c.mesh.deterministic = False  # bit-identical results of repeated runs on GPUs, a little slower
    c.mesh.attention = "auto"  # auto (a flash kernel if one is supported) | plain | cudnn (GPU) | splash (TPU)

    c.checkpoint = ConfigDict()
    c.checkpoint.every_steps = None  # optimizer steps; None: off
    c.checkpoint.every_seconds = 600.0  # wall time; None: off
    c.checkpoint.keep = 2  # number of newest checkpoints kept; None: all
    c.checkpoint.per_decade = None  # also keep and evaluate this many checkpoints per factor of 10 in steps; None: off
    c.checkpoint.at = ()  # also keep and evaluate the checkpoints of these steps

    c.metrics = ConfigDict()
    c.metrics.every_steps = 10  # optimizer steps between lines of metrics.jsonl
    c.metrics.tensorboard = False  # also write TensorBoard event files into the run directory
    c.metrics.wandb = None  # offline | online: also log to Weights & Biases; None: off
    c.metrics.mlflow = None  # local | a tracking URI: also log to MLflow; None: off

    c.launch = ConfigDict()  # what a run needs from a cluster (lmjax sweep --launcher); see docs/launching.md
    c.launch.nodes = 1  # machines per run, joined through jax.distributed
    c.launch.gpus = 0  # per node
    c.launch.tpus = 0  # chips per node
    c.launch.cpus = None  # cores per node; None: 4 per GPU or TPU chip, 1 without
    c.launch.memory = None  # GiB per node; None: the plan's estimate for a run on CPUs, the cluster's default otherwise
    c.launch.time = None  # minutes after which a run is saved and queued again; None: the partition's limit
    c.launch.partition = None  # Slurm partition
    c.launch.account = None  # Slurm account
    c.launch.image = None  # container image with lmjax (Kubernetes)
    c.launch.volume = None  # CLAIM:/path, a shared volume that holds the run directories (Kubernetes)
    c.launch.extra = ()  # further sbatch options, Kubernetes node selectors KEY=VALUE, or Ray resources NAME=AMOUNT

    c.run = ConfigDict()
    c.run.name = None  # first word of the run id; None: the model family
    c.run.held_out = False  # a held-out run: not fitted; its loss is predicted before it is trained, then compared
    c.run.learning_rate_rule = "fixed"  # name of the rule that chose learning_rate, for the record
    return c.lock()
