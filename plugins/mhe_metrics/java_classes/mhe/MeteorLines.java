package mhe;

import edu.cmu.meteor.scorer.MeteorConfiguration;
import edu.cmu.meteor.scorer.MeteorScorer;
import edu.cmu.meteor.util.Constants;
import edu.cmu.meteor.util.Normalizer;
import java.io.BufferedOutputStream;
import java.io.BufferedReader;
import java.io.File;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Properties;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.LinkedBlockingQueue;

/**
 * METEOR's scorer on several threads: `MeteorLines THREADS [PARAPHRASES]`, as `-stdio -l en -norm` of the jar.
 *
 * A line `SCORE ||| reference ||| … ||| answer` is answered by one line of statistics, in the same order. The threads
 * share the dictionaries, by the scorer's own constructor for that. A line that cannot be scored ends the program,
 * after the answers to all lines before it.
 */
public final class MeteorLines {
    private static final int MOST_WAITING = 4096;

    private MeteorLines() {}

    public static void main(String[] given) throws Exception {
        MeteorScorer shared = new MeteorScorer(configuration(given.length > 1 ? given[1] : null));
        int language = Constants.LANG_EN;
        // The normaliser fills a table of its own when it is first used, which no two threads may do at once.
        Normalizer.normalizeLine("a.", language, true);
        ExecutorService threads = Executors.newFixedThreadPool(Integer.parseInt(given[0]), task -> {
            Thread thread = new Thread(task);
            thread.setDaemon(true);
            return thread;
        });
        ThreadLocal<MeteorScorer> scorers = ThreadLocal.withInitial(() -> new MeteorScorer(shared));
        BlockingQueue<Future<String>> waiting = new LinkedBlockingQueue<>(MOST_WAITING);
        Thread writer = new Thread(() -> write(waiting));
        writer.start();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String request = line;
            waiting.put(threads.submit(() -> score(scorers.get(), request, language)));
        }
        waiting.put(threads.submit(() -> null));
        writer.join();
    }

    private static MeteorConfiguration configuration(String paraphrases) throws Exception {
        Properties properties = new Properties();
        properties.setProperty("language", "en");
        MeteorConfiguration configuration = new MeteorConfiguration(properties);
        if (paraphrases != null) {
            configuration.setParaFileURL(new File(paraphrases).toURI().toURL());
        }
        // Lines are normalised here, those alone that need it.
        configuration.setNormalization(Constants.NORMALIZE_LC_ONLY);
        return configuration;
    }

    private static String score(MeteorScorer scorer, String request, int language) {
        String[] parts = request.split("\\|\\|\\|");
        if (parts.length < 3) {
            return "Error: specify hypothesis and at least one reference";
        }
        ArrayList<String> references = new ArrayList<>();
        for (int place = 1; place < parts.length - 1; place++) {
            references.add(normalized(parts[place].trim(), language));
        }
        return scorer.getMeteorStats(normalized(parts[parts.length - 1].trim(), language), references).toString();
    }

    /** What the jar's normaliser gives; it changes nothing in small letters, digits and blanks of ASCII. */
    private static String normalized(String text, int language) {
        for (int place = 0; place < text.length(); place++) {
            char letter = text.charAt(place);
            if (!(letter == ' ' || letter >= 'a' && letter <= 'z' || letter >= '0' && letter <= '9')) {
                return Normalizer.normalizeLine(text, language, true);
            }
        }
        return text;
    }

    private static void write(BlockingQueue<Future<String>> waiting) {
        BufferedOutputStream out = new BufferedOutputStream(new FileOutputStream(FileDescriptor.out), 1 << 16);
        int status = 0;
        try {
            for (String answer = next(waiting, out); answer != null; answer = next(waiting, out)) {
                out.write((answer + "\n").getBytes(StandardCharsets.UTF_8));
            }
        } catch (ExecutionException error) {
            System.err.println(error.getCause());
            status = 1;
        } catch (IOException | InterruptedException error) {
            System.err.println(error);
            status = 1;
        }
        try {
            out.flush();
        } catch (IOException error) {
            status = 1;
        }
        Runtime.getRuntime().halt(status);
    }

    /** The next answer; what was written before is sent off where it is still to come. */
    private static String next(BlockingQueue<Future<String>> waiting, BufferedOutputStream out)
            throws ExecutionException, InterruptedException, IOException {
        Future<String> answer = waiting.poll();
        if (answer == null || !answer.isDone()) {
            out.flush();
        }
        return (answer == null ? waiting.take() : answer).get();
    }
}
