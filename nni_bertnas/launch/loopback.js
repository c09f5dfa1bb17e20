// NNI's web portal listens on every interface and has no password. Loaded into its process
// (NODE_OPTIONS=--require), this keeps every port it opens on this machine.
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
    if (typeof port === 'number' && typeof rest[0] !== 'string') {
        return listen.call(this, port, '127.0.0.1', ...rest);
    }
    return listen.call(this, port, ...rest);
};
