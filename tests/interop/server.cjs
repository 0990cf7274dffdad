// An echo server of Node's ws library over TLS: `server.cjs CERTIFICATE KEY` prints its port, and ends with its standard input.
const fs = require('fs');
const https = require('https');
const { WebSocketServer } = require('ws');

const server = https.createServer({ cert: fs.readFileSync(process.argv[2]), key: fs.readFileSync(process.argv[3]) });
const venue = new WebSocketServer({ server, maxPayload: 64 << 20, perMessageDeflate: { threshold: 0 } });
venue.on('connection', (line) => {
  line.ping('are you there');
  // The client's pong has to come before anything else is said.
  line.once('pong', () => line.send('hello'));
  line.on('message', (message, isBinary) => {
    if (!isBinary && message.toString() === 'close') return line.close(4001, 'as you asked');
    line.send(message, { binary: isBinary });
  });
});
server.listen(0, 'localhost', () => console.log(server.address().port));
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
