package db

import "sync"

// hub wakes those who wait for a topic, in this process.
type hub struct {
	mu sync.Mutex
	// topics hold a channel for each topic that somebody waits for; it is closed
	// and removed when the topic is signalled.
	topics map[string]chan struct{}
}

// Changed returns a channel that is closed when a transaction that called
// Signal(topic) has become durable in this process. To miss nothing, ask for
// the channel, then read, then wait. Another replica's commit is not heard:
// whoever must see those reads again after a while.
func (d *DB) Changed(topic string) <-chan struct{} {
	d.hub.mu.Lock()
	defer d.hub.mu.Unlock()
	ch, ok := d.hub.topics[topic]
	if !ok {
		ch = make(chan struct{})
		d.hub.topics[topic] = ch
	}
	return ch
}

// Signal wakes those who wait for topic when the transaction is durable.
func (t *Tx) Signal(topic string) {
	for _, s := range t.signals {
		if s == topic {
			return
		}
	}
	t.signals = append(t.signals, topic)
}

func (h *hub) wake(topics []string) {
	if len(topics) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, topic := range topics {
		if ch, ok := h.topics[topic]; ok {
			close(ch)
			delete(h.topics, topic)
		}
	}
}

// committed runs what waits for the commit.
func (t *Tx) committed(h *hub) {
	for _, fn := range t.after {
		fn()
	}
	h.wake(t.signals)
}
