// NNI's web portal listens on every interface and has no password. Loaded into its process
// (NODE_OPTIONS=--require), this keeps every port it opens on this machine, TensorBoard's too.
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
    if (typeof port === 'number' && typeof rest[0] !== 'string') {
        return listen.call(this, port, '127.0.0.1', ...rest);
    }
    return listen.call(this, port, ...rest);
};

// Who started this process ends it, and so its trials. Where that one was killed nobody would.
const owner = Number(process.env.BERTNAS_OWNER);
if (owner && process.ppid === owner) {
    setInterval(() => {
        if (process.ppid !== owner) {
            process.kill(process.pid, 'SIGTERM');
            setTimeout(() => process.exit(1), 10000).unref();
        }
    }, 500).unref();
}

// The portal's button runs TensorBoard through a shell that splits folders at spaces.
const processes = require('child_process');
const spawn = processes.spawn;
processes.spawn = function (command, options, ...rest) {
    if (command === 'tensorboard') {
        options = options.map((option) =>
            option.replace(/^--bind_all --logdir_spec=(.*)$/, (_, folders) =>
                `--host=127.0.0.1 --logdir_spec='${folders.replace(/'/g, "'\\''")}'`
            )
        );
    }
    return spawn.call(this, command, options, ...rest);
};

// NNI gives its tuner ten seconds to load, which a busy machine does not have.
const later = global.setTimeout;
global.setTimeout = function (call, delay, ...rest) {
    return later(call, String(call).includes('Tuner did not connect') ? 120000 : delay, ...rest);
};
Object.defineProperties(global.setTimeout, Object.getOwnPropertyDescriptors(later));
