// What several views show: the guests, the networks, and which of them is looked at.

export const state = {
  network: "",            // the one that is looked at; "" is all
  networks: [],           // names
  guests: new Map(),      // by network/id
  view: "",
};

export const guestKey = (network, id) => `${network ?? ""}/${id}`;

// guestOf finds a guest. One of a daemon's only network comes without its name.
export const guestOf = (network, id) => state.guests.get(guestKey(network, id)) ?? state.guests.get(guestKey("", id));

// guestName is what people call a guest.
export const guestName = (network, id) => guestOf(network, id)?.name || id || "";

// where is the query for a change to something of a network.
export const where = network => ({ network: network || state.network || "" });

// looked is whether something of a network is to be seen.
export const looked = row => !state.network || !row.network || row.network === state.network;
